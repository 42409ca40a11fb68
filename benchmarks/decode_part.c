/* Decode a part of a JPEG with the system's libjpeg-turbo, to the pixels that decoding all of it gives there. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

enum { MARGIN = 16 }; /* one block of chroma at half the resolution: upsampling looks at the neighbours */

/* Fill `pixels`, RGB of `height` x `width`, from the file of `size` bytes. Invalid files end the process. */
void decode_part(const unsigned char *file, unsigned long size, int top, int left, int height, int width,
                 unsigned char *pixels) {
    struct jpeg_decompress_struct decoder;
    struct jpeg_error_mgr errors;
    decoder.err = jpeg_std_error(&errors);
    jpeg_create_decompress(&decoder);
    jpeg_mem_src(&decoder, file, size);
    jpeg_read_header(&decoder, TRUE);
    jpeg_start_decompress(&decoder);
    JDIMENSION start = left > MARGIN ? left - MARGIN : 0, end = left + width + MARGIN;
    if (end > decoder.output_width) end = decoder.output_width;
    JDIMENSION columns = end - start;
    jpeg_crop_scanline(&decoder, &start, &columns);
    if (top > 0) jpeg_skip_scanlines(&decoder, top);
    JSAMPROW line = malloc((size_t)columns * 3);
    for (int y = 0; y < height; ++y) {
        jpeg_read_scanlines(&decoder, &line, 1);
        memcpy(pixels + (size_t)y * width * 3, line + (left - start) * 3, (size_t)width * 3);
    }
    free(line);
    jpeg_abort_decompress(&decoder);
    jpeg_destroy_decompress(&decoder);
}
