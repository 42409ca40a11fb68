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

struct Tile {
  Lanes sums[kRows][kWide];

  const float* Row(int row) const { return reinterpret_cast<const float*>(sums[row]); }
};

// tile[i] += Σ_k a[i · row + k · step] · panel[k], for ``count`` rows of the tile; what the others hold has no meaning.
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
    depth_ = depth;
    const int64_t panels = Ceil(columns, kPanel);
    data_.resize(panels * depth * kPanel);
    row_.resize(panels * kPanel);
    for (int64_t k = 0; k < depth; ++k) {
      gather(k, row_.data());
      for (int64_t p = 0; p < panels; ++p) {
        std::memcpy(&data_[(p * depth + k) * kPanel], &row_[p * kPanel], kPanel * sizeof(float));
      }
    }
  }

  const float* Panel(int64_t column) const { return &data_[column * depth_]; }

 private:
  int64_t depth_ = 0;
  std::vector<float> data_, row_;
};

struct Geometry {
  int64_t batch, groups, channels, height, width;  // channels of the input per group
  int64_t rows, out_height, out_width;             // output channels per group
  int64_t kernel, stride, padding;

  Geometry(const int64_t* x, const int64_t* weight, const int64_t* y, const float* stride_and_padding)
      : batch(x[0]), groups(x[1] / weight[1]), channels(weight[1]), height(x[2]), width(x[3]),
        rows(weight[0] / groups), out_height(y[2]), out_width(y[3]), kernel(weight[2]),
        stride(stride_and_padding[0]), padding(stride_and_padding[1]) {
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

  // Where the columns ``first`` to ``last`` of a row of the matrix are in x: visit(number of the first of these columns,
  // offset in x, count) for every run of them that sees no padding; its values in x are ``stride`` apart.
  template <typename Visit>
  void Runs(int64_t group, int64_t row, int64_t first, int64_t last, Visit visit) const {
    const int64_t down = row / kernel % kernel - padding, right = row % kernel - padding;
    const int64_t from = std::max<int64_t>(0, Ceil(-right, stride));
    const int64_t to = std::min(out_width, width > right ? (width - 1 - right) / stride + 1 : 0);
    for (int64_t line = first / out_width; line * out_width < last; ++line) {
      const int64_t y = line % out_height * stride + down;
      const int64_t begin = std::max(line * out_width + from, first), end = std::min(line * out_width + to, last);
      if (y < 0 || y >= height || begin >= end) continue;
      const int64_t x = (begin - line * out_width) * stride + right;
      visit(begin - first, Input(line / out_height, group, row / (kernel * kernel)) + y * width + x, end - begin);
    }
  }

  void Gather(const float* x, int64_t group, int64_t row, int64_t first, int64_t last, float* to) const {
    if (padding > 0) std::fill_n(to, last - first, 0.0f);
    Runs(group, row, first, last, [=](int64_t column, int64_t offset, int64_t count) {
      if (stride == 1) {
        std::memcpy(to + column, x + offset, count * sizeof(float));
      } else {
        for (int64_t i = 0; i < count; ++i) to[column + i] = x[offset + i * stride];
      }
    });
  }
};

void Convolve(const Geometry& g, const float* x, const float* weight, const float* bias, float* y) {
  const int64_t depth = g.Depth(), columns = g.batch * g.OutPixels();
  const int64_t panels = Ceil(columns, kPanel), threads = omp_get_max_threads();
  int64_t blocks = Ceil(panels, std::max<int64_t>(1, kBlock / (depth * kPanel)));
  if (panels >= 4 * threads) blocks = Ceil(blocks, threads) * threads;
  const int64_t strips = Ceil(g.rows, kRows), parts = Parts(g.groups * blocks, strips);
#pragma omp parallel
  {
    Block block;
#pragma omp for collapse(3) schedule(dynamic)
    for (int64_t group = 0; group < g.groups; ++group) {
      for (int64_t i = 0; i < blocks; ++i) {
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t first = i * panels / blocks * kPanel;
          const int64_t last = std::min(columns, (i + 1) * panels / blocks * kPanel);
          block.Pack(depth, last - first, [&](int64_t k, float* to) { g.Gather(x, group, k, first, last, to); });
          const int64_t stop = std::min(g.rows, (part + 1) * strips / parts * kRows);
          for (int64_t row = part * strips / parts * kRows; row < stop; row += kRows) {
            const int count = std::min<int64_t>(kRows, stop - row);
            const int64_t channel = group * g.rows + row;
            for (int64_t column = first; column < last; column += kPanel) {
              const int64_t end = std::min(last, column + kPanel);
              Tile tile = {};
              for (int r = 0; r < count; ++r) {
                for (Lanes& sums : tile.sums[r]) sums += bias[channel + r];
              }
              Multiply(weight + channel * depth, depth, 1, count, block.Panel(column - first), depth, end - column,
                       tile);
              for (int64_t from = column; from < end;) {  // a panel may have pixels of several images
                const int64_t image = from / g.OutPixels(), to = std::min(end, (image + 1) * g.OutPixels());
                float* output = y + g.Output(image, group, row) + from - image * g.OutPixels();
                for (int r = 0; r < count; ++r) {
                  std::memcpy(output + r * g.OutPixels(), tile.Row(r) + from - column, (to - from) * sizeof(float));
                }
                from = to;
              }
            }
          }
        }
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

// Adds up what every output passes to the inputs it saw.
void Spread(const Geometry& g, const float* dy, const float* weight, float* dx) {
  const int64_t depth = g.Depth(), taps = g.kernel * g.kernel, columns = g.OutPixels();
  const int64_t width = std::max<int64_t>(1, kBlock / (g.rows * kPanel)) * kPanel;  // of a block
  const int64_t parts = Parts(g.batch * g.groups, g.channels);
#pragma omp parallel
  {
    Block block;
    std::vector<float> strip(g.rows * kRows);
#pragma omp for collapse(3) schedule(dynamic)
    for (int64_t image = 0; image < g.batch; ++image) {
      for (int64_t group = 0; group < g.groups; ++group) {
        for (int64_t part = 0; part < parts; ++part) {  // of the channels: nobody else adds to their planes
          const int64_t start = part * g.channels / parts, stop = (part + 1) * g.channels / parts;
          std::fill(dx + g.Input(image, group, start), dx + g.Input(image, group, stop), 0.0f);
          for (int64_t first = 0; first < columns; first += width) {
            const int64_t last = std::min(columns, first + width);
            block.Pack(g.rows, last - first, [&](int64_t k, float* to) {
              std::memcpy(to, dy + g.Output(image, group, k) + first, (last - first) * sizeof(float));
            });
            for (int64_t row = start * taps; row < stop * taps; row += kRows) {
              const int count = std::min<int64_t>(kRows, stop * taps - row);
              for (int64_t k = 0; k < g.rows; ++k) {
                std::copy_n(weight + (group * g.rows + k) * depth + row, count, &strip[k * kRows]);
              }
              for (int64_t column = first; column < last; column += kPanel) {
                const int64_t end = std::min(last, column + kPanel), origin = image * columns;
                Tile tile = {};
                Multiply(strip.data(), 1, kRows, count, block.Panel(column - first), g.rows, end - column, tile);
                for (int r = 0; r < count; ++r) {
                  g.Runs(group, row + r, origin + column, origin + end, [&](int64_t from, int64_t to, int64_t run) {
                    for (int64_t i = 0; i < run; ++i) dx[to + i * g.stride] += tile.Row(r)[from + i];
                  });
                }
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace

// x, weight, bias, (stride, padding) → y
OPERATOR(convolution) {
  const Geometry g(shapes[0], shapes[1], shapes[4], Input(tensors, 3));
  Convolve(g, Input(tensors, 0), Input(tensors, 1), Input(tensors, 2), Output(tensors, 4));
  return 0;
}

// dy, weight, x, (stride, padding) → dx
OPERATOR(convolution_input_grad) {
  const float *dy = Input(tensors, 0), *weight = Input(tensors, 1);
  const Geometry g(shapes[2], shapes[1], shapes[0], Input(tensors, 3));
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

}  // namespace

// x, dy, weight, (stride, padding) → dweight
OPERATOR(convolution_weight_grad) {
  const float *x = Input(tensors, 0), *dy = Input(tensors, 1);
  float* dweight = Output(tensors, 4);
  const Geometry g(shapes[0], shapes[2], shapes[1], Input(tensors, 3));
  const int64_t depth = g.Depth(), panels = Ceil(depth, kPanel);
  const int64_t strips = Ceil(g.rows, kRows), parts = Parts(g.groups * panels, strips);
#pragma omp parallel
  {
    std::vector<float> lines(kPanel * kRun), panel(kPanel * kRun);
    std::vector<Tile> totals;
#pragma omp for collapse(3) schedule(dynamic)
    for (int64_t group = 0; group < g.groups; ++group) {
      for (int64_t i = 0; i < panels; ++i) {
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t first = i * kPanel, last = std::min(depth, first + kPanel);
          const int64_t start = part * strips / parts, stop = (part + 1) * strips / parts;
          totals.assign(stop - start, {});
          for (int64_t run = 0; run < g.batch * Ceil(g.OutPixels(), kRun); ++run) {
            const int64_t image = run / Ceil(g.OutPixels(), kRun), begin = run % Ceil(g.OutPixels(), kRun) * kRun;
            const int64_t end = std::min(g.OutPixels(), begin + kRun), pitch = RoundUp(end - begin);
            for (int64_t column = first; column < last; ++column) {
              const int64_t origin = image * g.OutPixels();
              g.Gather(x, group, column, origin + begin, origin + end, &lines[(column - first) * pitch]);
            }
            for (int64_t pixel = 0; pixel < pitch; pixel += kLanes) {
              for (int64_t side = 0; side < kPanel; side += kLanes) {
                Lanes square[kLanes];
                for (int r = 0; r < kLanes; ++r) square[r] = Load(&lines[(side + r) * pitch + pixel]);
                Transpose(square);
                for (int r = 0; r < kLanes; ++r) {
                  Store(square[r], &panel[(pixel + r) * kPanel + side]);
                }
              }
            }
            for (int64_t strip = start; strip < stop; ++strip) {
              const float* gradient = dy + g.Output(image, group, strip * kRows) + begin;
              Tile tile = {};
              Multiply(gradient, g.OutPixels(), 1, std::min<int64_t>(kRows, g.rows - strip * kRows), panel.data(),
                       end - begin, last - first, tile);
              Tile& total = totals[strip - start];
              for (int r = 0; r < kRows; ++r) {
                for (int j = 0; j < kWide; ++j) total.sums[r][j] += tile.sums[r][j];
              }
            }
          }
          for (int64_t row = start * kRows; row < std::min(g.rows, stop * kRows); ++row) {
            std::copy_n(totals[row / kRows - start].Row(row % kRows), last - first,
                        dweight + (group * g.rows + row) * depth + first);
          }
        }
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
