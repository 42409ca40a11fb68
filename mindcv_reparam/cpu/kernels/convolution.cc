// Convolutions as matrix products: square kernels, equal strides and paddings, any groups, no dilation.
//
// The matrix of a group has a row per (input channel, tap) and a column per output pixel of the batch. It is never
// stored whole: blocks of it that stay in the second-level cache are packed into panels, as wide as the tile of sums
// that the registers hold (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008).

#include <omp.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "tensors.h"

namespace {

// Of a tile: its sums take 16 of 32 registers, or 12 of the 16 that AVX has.
constexpr int kRows = kLanes == 8 ? 6 : 8, kWide = 2;
constexpr int64_t kPanel = kWide * kLanes;  // columns
constexpr int64_t kBlock = 96 * 1024;       // floats of a packed block
constexpr int64_t kRun = 512;               // pixels whose products are summed before they are added to a gradient

int64_t Ceil(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// How many parts to cut each of ``tasks`` equal tasks into, so that no thread idles for long.
int64_t Parts(int64_t tasks, int64_t most) {
  const int64_t threads = omp_get_max_threads();
  return tasks % threads == 0 || tasks >= 8 * threads ? 1 : std::min(threads, most);
}

struct Range {
  int64_t begin, end;

  int64_t Size() const { return end - begin; }
};

// One of ``parts`` nearly equal parts of ``size`` things, cut at multiples of ``unit``.
Range Share(int64_t part, int64_t parts, int64_t size, int64_t unit) {
  const int64_t units = Ceil(size, unit);
  return {part * units / parts * unit, std::min(size, (part + 1) * units / parts * unit)};
}

struct Tile {
  Lanes sums[kRows][kWide];

  const float* Row(int row) const { return reinterpret_cast<const float*>(sums[row]); }
};

// tile[i] += Σ_k a[i · row + k · step] · panel[k] for ``count`` rows of the tile; what the others hold has no meaning.
template <int Wide>
void Multiply(const float* a, int64_t row, int64_t step, int count, const float* panel, int64_t depth, Tile& tile) {
  const float* rows[kRows];
  Lanes sums[kRows][Wide];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    rows[i] = a + std::min(i, count - 1) * row;
#pragma GCC unroll 2
    for (int j = 0; j < Wide; ++j) sums[i][j] = tile.sums[i][j];
  }
  for (int64_t k = 0; k < depth; ++k, panel += kPanel) {
    Lanes values[Wide];
#pragma GCC unroll 2
    for (int j = 0; j < Wide; ++j) values[j] = Load(panel + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < Wide; ++j) sums[i][j] += rows[i][k * step] * values[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < Wide; ++j) tile.sums[i][j] = sums[i][j];
  }
}

void Multiply(const float* a, int64_t row, int64_t step, int count, const float* panel, int64_t depth, int64_t columns,
              Tile& tile) {
  if (columns > kLanes) {
    Multiply<kWide>(a, row, step, count, panel, depth, tile);
  } else {
    Multiply<1>(a, row, step, count, panel, depth, tile);
  }
}

// Part of a matrix in panels: row k of panel p is at (p · depth + k) · kPanel.
class Block {
 public:
  // Fills it: gather(k, to) writes row k from the first column to the last.
  template <typename Gather>
  void Pack(int64_t depth, int64_t columns, Gather gather) {
    const int64_t panels = Ceil(columns, kPanel);
    depth_ = depth;
    data_.resize(std::max<size_t>(data_.size(), panels * depth * kPanel));
    row_.resize(std::max<size_t>(row_.size(), panels * kPanel));
    for (int64_t k = 0; k < depth; ++k) {
      gather(k, row_.data());
      for (int64_t p = 0; p < panels; ++p) {
        for (int j = 0; j < kWide; ++j) {
          Store(Load(&row_[p * kPanel + j * kLanes]), &data_[(p * depth + k) * kPanel + j * kLanes]);
        }
      }
    }
  }

  const float* Panel(int64_t column) const { return &data_[column * depth_]; }

 private:
  int64_t depth_;
  std::vector<float> data_, row_;
};

thread_local Block block;  // its memory is kept: fresh pages cost as much as a small convolution

struct Geometry {
  int64_t batch, groups, channels, height, width;  // channels of the input per group
  int64_t rows, out_height, out_width;             // output channels per group
  int64_t kernel, stride, padding;

  Geometry(const int64_t* x, const int64_t* weight, const int64_t* y, const int64_t* stride_and_padding)
      : batch(x[0]), groups(x[1] / weight[1]), channels(weight[1]), height(x[2]), width(x[3]),
        rows(weight[0] / groups), out_height(y[2]), out_width(y[3]), kernel(weight[2]),
        stride(stride_and_padding[0]), padding(stride_and_padding[1] - 1) {
    if (Pointwise()) {  // where a line of pixels ends has no meaning then
      width = out_width = height * width;
      height = out_height = 1;
    }
  }

  // Of the convolution with stride 1 that takes gradients for the output to those for the input.
  Geometry Adjoint() const {
    Geometry g = *this;
    std::swap(g.channels, g.rows);
    std::swap(g.height, g.out_height);
    std::swap(g.width, g.out_width);
    g.padding = kernel - 1 - padding;
    return g;
  }

  bool Pointwise() const { return kernel == 1 && stride == 1 && padding == 0; }
  int64_t Depth() const { return channels * kernel * kernel; }
  int64_t Pixels() const { return height * width; }
  int64_t OutPixels() const { return out_height * out_width; }

  // The offset of a plane of the input and of the output.
  int64_t Input(int64_t image, int64_t group, int64_t channel) const {
    return ((image * groups + group) * channels + channel) * Pixels();
  }
  int64_t Output(int64_t image, int64_t group, int64_t row) const {
    return ((image * groups + group) * rows + row) * OutPixels();
  }

  // Where columns of a row of the matrix are in x: visit(number of a first column, from the first of all, its offset in x,
  // how many) for every run of them that sees no padding; the values in x are ``stride`` apart.
  template <typename Visit>
  void Runs(int64_t group, int64_t row, Range columns, Visit visit) const {
    const int64_t down = row / kernel % kernel - padding, right = row % kernel - padding;
    const int64_t from = std::max<int64_t>(0, Ceil(-right, stride));
    const int64_t to = std::min(out_width, width > right ? (width - 1 - right) / stride + 1 : 0);
    for (int64_t line = columns.begin / out_width; line * out_width < columns.end; ++line) {
      const int64_t y = line % out_height * stride + down;
      const int64_t begin = std::max(line * out_width + from, columns.begin);
      const int64_t end = std::min(line * out_width + to, columns.end);
      if (y < 0 || y >= height || begin >= end) continue;
      const int64_t x = (begin - line * out_width) * stride + right;
      visit(begin - columns.begin, Input(line / out_height, group, row / (kernel * kernel)) + y * width + x, end - begin);
    }
  }

  void Gather(const float* x, int64_t group, int64_t row, Range columns, float* to) const {
    if (padding > 0) std::fill_n(to, columns.Size(), 0.0f);
    Runs(group, row, columns, [=](int64_t column, int64_t offset, int64_t count) {
      if (stride == 1) {
        std::memcpy(to + column, x + offset, count * sizeof(float));
      } else {
        for (int64_t i = 0; i < count; ++i) to[column + i] = x[offset + i * stride];
      }
    });
  }
};

// Rows and columns of y, of one group.
void Convolve(const Geometry& g, int64_t group, Range rows, Range columns, const float* x, const float* weight,
              const float* bias, float* y) {
  const int64_t depth = g.Depth(), pixels = g.OutPixels();
  block.Pack(depth, columns.Size(), [&](int64_t k, float* to) { g.Gather(x, group, k, columns, to); });
  for (int64_t row = rows.begin; row < rows.end; row += kRows) {
    const int count = std::min<int64_t>(kRows, rows.end - row);
    const int64_t channel = group * g.rows + row;
    for (int64_t column = columns.begin; column < columns.end; column += kPanel) {
      const int64_t end = std::min(columns.end, column + kPanel);
      Tile tile = {};
      for (int i = 0; i < count; ++i) {
        for (Lanes& sums : tile.sums[i]) sums += bias[channel + i];
      }
      Multiply(weight + channel * depth, depth, 1, count, block.Panel(column - columns.begin), depth, end - column,
               tile);
      for (int64_t from = column; from < end;) {  // a panel may have pixels of several images
        const int64_t image = from / pixels, to = std::min(end, (image + 1) * pixels);
        float* output = y + g.Output(image, group, row) + from - image * pixels;
        for (int i = 0; i < count; ++i) {
          if (to - from == kPanel) {  // as a rule; of known length, it is no call
            std::memcpy(output + i * pixels, tile.Row(i), kPanel * sizeof(float));
          } else {
            std::memcpy(output + i * pixels, tile.Row(i) + from - column, (to - from) * sizeof(float));
          }
        }
        from = to;
      }
    }
  }
}

void Convolve(const Geometry& g, const float* x, const float* weight, const float* bias, float* y) {
  const int64_t columns = g.batch * g.OutPixels(), panels = Ceil(columns, kPanel), threads = omp_get_max_threads();
  int64_t blocks = Ceil(panels, std::max<int64_t>(1, kBlock / (g.Depth() * kPanel)));
  if (panels >= 4 * threads) blocks = Ceil(blocks, threads) * threads;
  const int64_t parts = Parts(g.groups * blocks, Ceil(g.rows, kRows));
#pragma omp parallel for collapse(3) schedule(dynamic)
  for (int64_t group = 0; group < g.groups; ++group) {
    for (int64_t i = 0; i < blocks; ++i) {
      for (int64_t part = 0; part < parts; ++part) {
        Convolve(g, group, Share(part, parts, g.rows, kRows), Share(i, blocks, columns, kPanel), x, weight, bias, y);
      }
    }
  }
}

// Weights (out, in, k, k) → (in, out, k, k) of every group, the taps in reverse order.
std::vector<float> AdjointWeights(const Geometry& g, const float* weight) {
  const int64_t taps = g.kernel * g.kernel;
  std::vector<float> adjoint(g.groups * g.rows * g.Depth());
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t group = 0; group < g.groups; ++group) {
    for (int64_t channel = 0; channel < g.channels; ++channel) {
      for (int64_t row = 0; row < g.rows; ++row) {
        const float* from = weight + ((group * g.rows + row) * g.channels + channel) * taps;
        std::reverse_copy(from, from + taps, &adjoint[((group * g.channels + channel) * g.rows + row) * taps]);
      }
    }
  }
  return adjoint;
}

// Adds up what the outputs of an image pass to the inputs they saw, of one group; nobody else has these channels of dx.
void Spread(const Geometry& g, int64_t image, int64_t group, Range channels, const float* dy, const float* weight,
            float* dx) {
  thread_local std::vector<float> strip;
  strip.resize(g.rows * kRows);
  const int64_t depth = g.Depth(), taps = g.kernel * g.kernel, pixels = g.OutPixels(), origin = image * pixels;
  const int64_t width = std::max<int64_t>(1, kBlock / (g.rows * kPanel)) * kPanel;  // of a block
  std::fill(dx + g.Input(image, group, channels.begin), dx + g.Input(image, group, channels.end), 0.0f);
  for (int64_t first = 0; first < pixels; first += width) {
    const int64_t last = std::min(pixels, first + width);
    block.Pack(g.rows, last - first, [&](int64_t k, float* to) {
      std::memcpy(to, dy + g.Output(image, group, k) + first, (last - first) * sizeof(float));
    });
    for (int64_t row = channels.begin * taps; row < channels.end * taps; row += kRows) {
      const int count = std::min<int64_t>(kRows, channels.end * taps - row);
      for (int64_t k = 0; k < g.rows; ++k) {
        std::copy_n(weight + (group * g.rows + k) * depth + row, count, &strip[k * kRows]);
      }
      for (int64_t column = first; column < last; column += kPanel) {
        const int64_t end = std::min(last, column + kPanel);
        Tile tile = {};
        Multiply(strip.data(), 1, kRows, count, block.Panel(column - first), g.rows, end - column, tile);
        for (int i = 0; i < count; ++i) {
          const float* values = tile.Row(i);
          g.Runs(group, row + i, {origin + column, origin + end}, [=, &g](int64_t from, int64_t to, int64_t run) {
            for (int64_t j = 0; j < run; ++j) dx[to + j * g.stride] += values[from + j];
          });
        }
      }
    }
  }
}

void Spread(const Geometry& g, const float* dy, const float* weight, float* dx) {
  const int64_t parts = Parts(g.batch * g.groups, Ceil(g.channels, kRows));
#pragma omp parallel for collapse(3) schedule(dynamic)
  for (int64_t image = 0; image < g.batch; ++image) {
    for (int64_t group = 0; group < g.groups; ++group) {
      for (int64_t part = 0; part < parts; ++part) {
        // Cut where tiles end, so that the order of sums is the same for all parts.
        Spread(g, image, group, Share(part, parts, g.channels, kRows), dy, weight, dx);
      }
    }
  }
}

}  // namespace

// x, weight, bias, a tensor of shape (stride, padding + 1) → y
OPERATOR(convolution) {
  const Geometry g(shapes[0], shapes[1], shapes[4], shapes[3]);
  Convolve(g, Input(tensors, 0), Input(tensors, 1), Input(tensors, 2), Output(tensors, 4));
  return 0;
}

// dy, weight, x, a tensor of shape (stride, padding + 1) → dx
OPERATOR(convolution_input_grad) {
  const float *dy = Input(tensors, 0), *weight = Input(tensors, 1);
  const Geometry g(shapes[2], shapes[1], shapes[0], shapes[3]);
  if (g.stride == 1 && g.padding < g.kernel) {
    const std::vector<float> zeros(g.groups * g.channels);
    Convolve(g.Adjoint(), dy, AdjointWeights(g, weight).data(), zeros.data(), Output(tensors, 4));
  } else {
    Spread(g, dy, weight, Output(tensors, 4));
  }
  return 0;
}

namespace {

// Turns a square of floats over.
void Transpose(Lanes (&square)[kLanes]) {
  typedef int32_t Indices __attribute__((vector_size(sizeof(Lanes))));
#pragma GCC unroll 4
  for (int distance = 1; distance < kLanes; distance *= 2) {
    Indices low, high;
    for (int i = 0; i < kLanes; ++i) {
      low[i] = i & distance ? i - distance + kLanes : i;
      high[i] = i & distance ? i + kLanes : i + distance;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & distance) continue;
      const Lanes first = square[i], second = square[i + distance];
      square[i] = __builtin_shuffle(first, second, low);
      square[i + distance] = __builtin_shuffle(first, second, high);
    }
  }
}

// The panel of columns of the matrix, turned over: row p has what the output pixel p of the image sees.
void PackPixels(const Geometry& g, int64_t group, Range columns, Range pixels, const float* x, float* panel) {
  thread_local std::vector<float> lines(kPanel * kRun);
  const int64_t pitch = RoundUp(pixels.Size());
  for (int64_t column = columns.begin; column < columns.end; ++column) {
    g.Gather(x, group, column, pixels, &lines[(column - columns.begin) * pitch]);
  }
  for (int64_t pixel = 0; pixel < pitch; pixel += kLanes) {
    for (int64_t side = 0; side < kPanel; side += kLanes) {
      Lanes square[kLanes];
      for (int i = 0; i < kLanes; ++i) square[i] = Load(&lines[(side + i) * pitch + pixel]);
      Transpose(square);
      for (int i = 0; i < kLanes; ++i) Store(square[i], &panel[(pixel + i) * kPanel + side]);
    }
  }
}

// A panel of columns of dweight, of one group; ``strips`` are kRows rows each.
void WeightGradient(const Geometry& g, int64_t group, Range strips, Range columns, const float* x, const float* dy,
                    float* dweight) {
  thread_local std::vector<float> panel(kPanel * kRun);
  const int64_t pixels = g.OutPixels();
  std::vector<Tile> totals(strips.Size());
  for (int64_t image = 0; image < g.batch; ++image) {
    for (int64_t first = 0; first < pixels; first += kRun) {
      const int64_t last = std::min(pixels, first + kRun), origin = image * pixels;
      PackPixels(g, group, columns, {origin + first, origin + last}, x, panel.data());
      for (int64_t strip = strips.begin; strip < strips.end; ++strip) {
        Tile tile = {}, &total = totals[strip - strips.begin];
        Multiply(dy + g.Output(image, group, strip * kRows) + first, pixels, 1,
                 std::min<int64_t>(kRows, g.rows - strip * kRows), panel.data(), last - first, columns.Size(), tile);
        for (int i = 0; i < kRows; ++i) {
          for (int j = 0; j < kWide; ++j) total.sums[i][j] += tile.sums[i][j];
        }
      }
    }
  }
  for (int64_t row = strips.begin * kRows; row < std::min(g.rows, strips.end * kRows); ++row) {
    std::copy_n(totals[row / kRows - strips.begin].Row(row % kRows), columns.Size(),
                dweight + (group * g.rows + row) * g.Depth() + columns.begin);
  }
}

}  // namespace

// x, dy, weight, a tensor of shape (stride, padding + 1) → dweight
OPERATOR(convolution_weight_grad) {
  const Geometry g(shapes[0], shapes[2], shapes[1], shapes[3]);
  const int64_t depth = g.Depth(), panels = Ceil(depth, kPanel), strips = Ceil(g.rows, kRows);
  const int64_t parts = Parts(g.groups * panels, strips);
#pragma omp parallel for collapse(3) schedule(dynamic)
  for (int64_t group = 0; group < g.groups; ++group) {
    for (int64_t i = 0; i < panels; ++i) {
      for (int64_t part = 0; part < parts; ++part) {
        WeightGradient(g, group, Share(part, parts, strips, 1), Share(i, panels, depth, kPanel), Input(tensors, 0),
                       Input(tensors, 1), Output(tensors, 4));
      }
    }
  }
  return 0;
}

// dy → the sums of its channels
OPERATOR(channel_sums) {
  const float* dy = Input(tensors, 0);
  float* sums = Output(tensors, 1);
  const int64_t batch = shapes[0][0], channels = shapes[0][1], pixels = shapes[0][2] * shapes[0][3];
#pragma omp parallel for schedule(static)
  for (int64_t c = 0; c < channels; ++c) {
    double total = 0;
    for (int64_t n = 0; n < batch; ++n) {
      const float* plane = dy + (n * channels + c) * pixels;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < pixels; ++i) sum += plane[i];
      total += sum;
    }
    sums[c] = total;
  }
  return 0;
}
