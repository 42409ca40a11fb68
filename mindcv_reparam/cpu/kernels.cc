// Kernels for what MindSpore 2.10's CPU backend is slow at, as ahead-of-time custom operators: float32, NCHW.
//
// Every operator is a function (number of tensors, their data, ranks, shapes, types, stream, extra) → 0; the tensors
// are its inputs, then its outputs. Sums run in a fixed order, so that results do not depend on the thread count.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#define OPERATOR(name) \
  extern "C" int name(int, void** tensors, int* ranks, int64_t** shapes, const char**, void*, void*)

namespace {

constexpr int kLanes = 16;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float)), aligned(4)));

inline Lanes Load(const float* from) {
  Lanes value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline float Sum(Lanes value) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += value[i];
  return sum;
}

inline int64_t RoundUp(int64_t value) { return (value + kLanes - 1) / kLanes * kLanes; }

const float* Input(void** tensors, int i) { return static_cast<const float*>(tensors[i]); }
float* Output(void** tensors, int i) { return static_cast<float*>(tensors[i]); }

int64_t Size(int rank, const int64_t* shape) {
  int64_t size = 1;
  for (int i = 0; i < rank; ++i) size *= shape[i];
  return size;
}

// ---- GELU ----------------------------------------------------------------------------------------------------------

// Cephes' expf, within 2 ulp; without branches, so that loops over it vectorise.
inline float Exp(float x) {
  x = std::min(std::max(x, -87.0f), 88.0f);
  const float n = __builtin_rintf(x * 1.44269504f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return p * scale;
}

// The rational minimax approximation that Eigen and XLA use too; beyond 3.83, float32's error function is 1.
inline float Erf(float x) {
  constexpr float kOne = 3.8325069f;
  if (x > kOne) return 1.0f;
  if (x < -kOne) return -1.0f;
  const float z = x * x;
  float p = -2.72614225801306e-10f;
  p = p * z + 2.77068142495902e-08f;
  p = p * z - 2.10102402082508e-06f;
  p = p * z - 5.69250639462346e-05f;
  p = p * z - 7.34990630326855e-04f;
  p = p * z - 2.95459980854025e-03f;
  p = p * z - 1.60960333262415e-02f;
  float q = -1.45660718464996e-05f;
  q = q * z - 2.13374055278905e-04f;
  q = q * z - 1.68282697438203e-03f;
  q = q * z - 7.37332916720468e-03f;
  q = q * z - 1.42647390514189e-02f;
  return x * p / q;
}

inline float NormalCdf(float x) { return 0.5f + 0.5f * Erf(x * 0.70710678f); }

constexpr float kTanh1 = 1.5957691216f, kTanh3 = 0.0713548163f;  // 2√(2/π), and 0.044715 times it

inline float TanhCdf(float x) { return 1.0f / (1.0f + Exp(-x * (kTanh1 + kTanh3 * x * x))); }

// y = function(x) for every element.
template <typename Function>
int Forward(void** tensors, const int* ranks, int64_t** shapes, Function function) {
  const float* x = Input(tensors, 0);
  float* y = Output(tensors, 1);
  const int64_t size = Size(ranks[0], shapes[0]);
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < size; ++i) y[i] = function(x[i]);
  return 0;
}

// dx = function(x, dy) for every element.
template <typename Function>
int Backward(void** tensors, const int* ranks, int64_t** shapes, Function function) {
  const float *x = Input(tensors, 0), *dy = Input(tensors, 1);
  float* dx = Output(tensors, 2);
  const int64_t size = Size(ranks[0], shapes[0]);
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < size; ++i) dx[i] = function(x[i], dy[i]);
  return 0;
}

}  // namespace

OPERATOR(gelu_exact) {
  return Forward(tensors, ranks, shapes, [](float x) { return x * NormalCdf(x); });
}

OPERATOR(gelu_exact_grad) {
  return Backward(tensors, ranks, shapes, [](float x, float dy) {
    return dy * (NormalCdf(x) + 0.39894228f * x * Exp(-0.5f * x * x));
  });
}

OPERATOR(gelu_tanh) {
  return Forward(tensors, ranks, shapes, [](float x) { return x * TanhCdf(x); });
}

OPERATOR(gelu_tanh_grad) {
  return Backward(tensors, ranks, shapes, [](float x, float dy) {
    const float cdf = TanhCdf(x);
    return dy * cdf * (1.0f + x * (1.0f - cdf) * (kTanh1 + 3.0f * kTanh3 * x * x));
  });
}

// ---- Depthwise convolution: odd square kernels, padding (kernel − 1) / 2, stride 1 or 2, any channel multiplier -------

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
DEPTHWISE(7, 1)
DEPTHWISE(7, 2)

// ---- Group normalisation with one group -----------------------------------------------------------------------------

namespace {

struct Moments {  // of the pixels of one channel of one image
  double mean, squares;
};

Moments MomentsOf(const float* x, int64_t pixels) {
  float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < pixels; ++i) sum += x[i];
  const float mean = sum / pixels;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < pixels; ++i) squares += (x[i] - mean) * (x[i] - mean);
  return {mean, squares};
}

// The mean of an image and 1 / √(variance + ε), from those of its channels.
std::pair<double, double> Combine(const Moments* moments, int64_t channels, int64_t pixels, double eps) {
  double mean = 0, squares = 0;
  for (int64_t c = 0; c < channels; ++c) mean += moments[c].mean / channels;
  for (int64_t c = 0; c < channels; ++c) {
    squares += moments[c].squares + pixels * (moments[c].mean - mean) * (moments[c].mean - mean);
  }
  return {mean, 1.0 / __builtin_sqrt(squares / (channels * pixels) + eps)};
}

}  // namespace

// x, gamma, beta, eps → y
OPERATOR(group_norm) {
  const float *x = Input(tensors, 0), *gamma = Input(tensors, 1), *beta = Input(tensors, 2), *eps = Input(tensors, 3);
  float* y = Output(tensors, 4);
  const int64_t batch = shapes[0][0], channels = shapes[0][1], pixels = shapes[0][2] * shapes[0][3];
  std::vector<Moments> moments(batch * channels);
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < batch * channels; ++i) moments[i] = MomentsOf(x + i * pixels, pixels);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < batch * channels; ++i) {
      const auto [mean, factor] = Combine(&moments[i / channels * channels], channels, pixels, *eps);
      const float scale = gamma[i % channels] * factor, shift = beta[i % channels] - gamma[i % channels] * factor * mean;
      for (int64_t j = i * pixels; j < (i + 1) * pixels; ++j) y[j] = x[j] * scale + shift;
    }
  }
  return 0;
}

// x, gamma, dy, eps → dx, dgamma, dbeta
OPERATOR(group_norm_grad) {
  const float *x = Input(tensors, 0), *gamma = Input(tensors, 1), *dy = Input(tensors, 2), *eps = Input(tensors, 3);
  float *dx = Output(tensors, 4), *dgamma = Output(tensors, 5), *dbeta = Output(tensors, 6);
  const int64_t batch = shapes[0][0], channels = shapes[0][1], pixels = shapes[0][2] * shapes[0][3];
  struct Sums {  // of dy, and of dy times the normalised input
    double plain, normalised;
  };
  struct Image {
    double mean, factor, plain, normalised;  // the last two are means, weighted by gamma
  };
  std::vector<Moments> moments(batch * channels);
  std::vector<Sums> sums(batch * channels);
  std::vector<Image> images(batch);
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < batch * channels; ++i) {
      moments[i] = MomentsOf(x + i * pixels, pixels);
      const float mean = moments[i].mean;
      float plain = 0, centred = 0;
#pragma omp simd reduction(+ : plain, centred)
      for (int64_t j = i * pixels; j < (i + 1) * pixels; ++j) {
        plain += dy[j];
        centred += dy[j] * (x[j] - mean);
      }
      sums[i] = {plain, centred};
    }
#pragma omp for schedule(static)
    for (int64_t n = 0; n < batch; ++n) {
      const Moments* of_image = &moments[n * channels];
      const auto [mean, factor] = Combine(of_image, channels, pixels, *eps);
      Image image = {mean, factor, 0, 0};
      for (int64_t c = 0; c < channels; ++c) {
        Sums& sum = sums[n * channels + c];
        sum.normalised = factor * (sum.normalised + (of_image[c].mean - mean) * sum.plain);
        image.plain += gamma[c] * sum.plain / (channels * pixels);
        image.normalised += gamma[c] * sum.normalised / (channels * pixels);
      }
      images[n] = image;
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < batch * channels; ++i) {
      const Image& image = images[i / channels];
      const float scale = image.factor * gamma[i % channels], slope = -image.factor * image.factor * image.normalised;
      const float shift = -image.factor * image.plain - slope * image.mean;
      for (int64_t j = i * pixels; j < (i + 1) * pixels; ++j) dx[j] = dy[j] * scale + x[j] * slope + shift;
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    Sums total = {0, 0};
    for (int64_t n = 0; n < batch; ++n) {
      total.plain += sums[n * channels + c].plain;
      total.normalised += sums[n * channels + c].normalised;
    }
    dbeta[c] = total.plain;
    dgamma[c] = total.normalised;
  }
  return 0;
}
