// Depthwise convolution: odd square kernels, padding (kernel − 1) / 2, stride 1 or 2, any channel multiplier.

#include <algorithm>
#include <cstring>
#include <vector>

#include "tensors.h"

namespace {

// A plane with a zero border, its columns sorted by their remainder modulo the stride: tap (ky, kx) of the outputs
// (y, x), (y, x + 1), … are neighbours in memory.
class Plane {
 public:
  Plane(int64_t height, int64_t width, int kernel, int stride)
      : height_(height), width_(width), border_(kernel / 2), stride_(stride),
        pitch_(RoundUp((width + 2 * border_) / stride + 1) + kernel + kLanes),
        data_((height + 2 * border_ + stride) * stride * pitch_) {}

  // The values of a plane, at distance ``dilation`` from one another, zeros between them.
  void Fill(const float* from, int64_t height, int64_t width, int dilation = 1) {
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        const int64_t column = x * dilation + border_;
        Row(y * dilation + border_)[column % stride_ * pitch_ + column / stride_] = from[y * width + x];
      }
    }
  }

  const float* Tap(int64_t y, int64_t x, int ky, int kx) const {
    return data_.data() + (y * stride_ + ky) * stride_ * pitch_ + kx % stride_ * pitch_ + kx / stride_ + x;
  }

 private:
  float* Row(int64_t y) { return data_.data() + y * stride_ * pitch_; }

  int64_t height_, width_;
  int border_, stride_;
  int64_t pitch_;
  std::vector<float> data_;
};

// y += plane ∗ weight, for an output plane; ``start`` is what is not a sum: a bias, or the output itself.
template <int K>
void Correlate(const Plane& plane, const float* weight, float bias, bool accumulate, int64_t height, int64_t width,
               float* output) {
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; x += kLanes) {
      Lanes sum = {};
      sum += bias;
      for (int ky = 0; ky < K; ++ky) {
        for (int kx = 0; kx < K; ++kx) sum += weight[ky * K + kx] * Load(plane.Tap(y, x, ky, kx));
      }
      const int64_t count = std::min<int64_t>(kLanes, width - x);
      float* to = output + y * width + x;
      if (accumulate) {
        for (int64_t i = 0; i < count; ++i) to[i] += sum[i];
      } else {
        std::memcpy(to, &sum, count * sizeof(float));
      }
    }
  }
}

struct Geometry {
  int64_t batch, channels, height, width, multiplier, out_height, out_width;

  Geometry(const int64_t* x, const int64_t* weight, const int64_t* y)
      : batch(x[0]), channels(x[1]), height(x[2]), width(x[3]), multiplier(weight[0] / x[1]), out_height(y[2]),
        out_width(y[3]) {}
};

template <int K, int S>
int Depthwise(void** tensors, int64_t** shapes) {
  const float *x = Input(tensors, 0), *weight = Input(tensors, 1), *bias = Input(tensors, 2);
  float* y = Output(tensors, 3);
  const Geometry g(shapes[0], shapes[1], shapes[3]);
  const int64_t pixels = g.height * g.width, out_pixels = g.out_height * g.out_width;
#pragma omp parallel
  {
    Plane plane(g.height, g.width, K, S);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < g.batch * g.channels; ++i) {
      plane.Fill(x + i * pixels, g.height, g.width);
      for (int64_t j = 0; j < g.multiplier; ++j) {
        const int64_t out = i % g.channels * g.multiplier + j;
        Correlate<K>(plane, weight + out * K * K, bias[out], false, g.out_height, g.out_width,
                     y + (i * g.multiplier + j) * out_pixels);
      }
    }
  }
  return 0;
}

// x, weight, dy, bias → dx, dweight, dbias
template <int K, int S>
int DepthwiseGrad(void** tensors, int64_t** shapes) {
  const float *x = Input(tensors, 0), *weight = Input(tensors, 1), *dy = Input(tensors, 2);
  float *dx = Output(tensors, 4), *dweight = Output(tensors, 5), *dbias = Output(tensors, 6);
  const Geometry g(shapes[0], shapes[1], shapes[2]);
  const int64_t pixels = g.height * g.width, out_pixels = g.out_height * g.out_width;
  const int64_t pitch = RoundUp(g.out_width);
#pragma omp parallel
  {
    Plane input(g.height, g.width, K, S), dilated(g.height + S, g.width + S, K, 1);
    std::vector<float> rows(g.out_height * pitch), flipped(K * K);
#pragma omp for schedule(static)
    for (int64_t c = 0; c < g.channels; ++c) {
      for (int64_t out = c * g.multiplier; out < (c + 1) * g.multiplier; ++out) {
        double totals[K * K] = {}, total = 0;
        std::reverse_copy(weight + out * K * K, weight + (out + 1) * K * K, flipped.begin());
        for (int64_t n = 0; n < g.batch; ++n) {
          const float* gradient = dy + (n * g.channels * g.multiplier + out) * out_pixels;
          dilated.Fill(gradient, g.out_height, g.out_width, S);
          Correlate<K>(dilated, flipped.data(), 0, out > c * g.multiplier, g.height, g.width,
                       dx + (n * g.channels + c) * pixels);

          input.Fill(x + (n * g.channels + c) * pixels, g.height, g.width);
          Lanes sum = {};
          for (int64_t row = 0; row < g.out_height; ++row) {
            std::memcpy(&rows[row * pitch], gradient + row * g.out_width, g.out_width * sizeof(float));
            for (int64_t column = 0; column < pitch; column += kLanes) sum += Load(&rows[row * pitch + column]);
          }
          total += Sum(sum);
          for (int ky = 0; ky < K; ++ky) {
            Lanes sums[K] = {};
            for (int64_t row = 0; row < g.out_height; ++row) {
              for (int64_t column = 0; column < pitch; column += kLanes) {
                const Lanes value = Load(&rows[row * pitch + column]);
                for (int kx = 0; kx < K; ++kx) sums[kx] += value * Load(input.Tap(row, column, ky, kx));
              }
            }
            for (int kx = 0; kx < K; ++kx) totals[ky * K + kx] += Sum(sums[kx]);
          }
        }
        for (int i = 0; i < K * K; ++i) dweight[out * K * K + i] = totals[i];
        dbias[out] = total;
      }
    }
  }
  return 0;
}

}  // namespace

#define DEPTHWISE(K, S)                                                                       \
  OPERATOR(depthwise_##K##_##S) { return Depthwise<K, S>(tensors, shapes); }                  \
  OPERATOR(depthwise_##K##_##S##_grad) { return DepthwiseGrad<K, S>(tensors, shapes); }

DEPTHWISE(3, 1)
DEPTHWISE(3, 2)
DEPTHWISE(5, 1)
DEPTHWISE(5, 2)
DEPTHWISE(7, 1)
DEPTHWISE(7, 2)
