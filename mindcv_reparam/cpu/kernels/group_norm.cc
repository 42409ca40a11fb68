// Group normalisation with one group, and its gradients.

#include <utility>
#include <vector>

#include "tensors.h"

namespace {

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
