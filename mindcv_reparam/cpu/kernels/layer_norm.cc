// Layer normalisation over the last axis, and its gradients: rows of as many numbers as gamma has.

#include <algorithm>
#include <vector>

#include "tensors.h"

namespace {

struct Row {
  float mean, factor;  // of its numbers, and 1 / √(variance + ε)
};

Row RowOf(const float* x, int64_t size, float eps) {
  const Moments moments = MomentsOf(x, size);
  return {static_cast<float>(moments.mean), 1.0f / __builtin_sqrtf(static_cast<float>(moments.squares) / size + eps)};
}

}  // namespace

// x, gamma, beta, eps → y
OPERATOR(layer_norm) {
  const float *x = Input(tensors, 0), *gamma = Input(tensors, 1), *beta = Input(tensors, 2), *eps = Input(tensors, 3);
  float* y = Output(tensors, 4);
  const int64_t size = shapes[1][0], rows = Size(ranks[0], shapes[0]) / size;
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = x + row * size;
    float* to = y + row * size;
    const auto [mean, factor] = RowOf(from, size, *eps);
    for (int64_t i = 0; i < size; ++i) to[i] = (from[i] - mean) * factor * gamma[i] + beta[i];
  }
  return 0;
}

// x, gamma, dy, eps → dx, dgamma, dbeta
OPERATOR(layer_norm_grad) {
  const float *x = Input(tensors, 0), *gamma = Input(tensors, 1), *dy = Input(tensors, 2), *eps = Input(tensors, 3);
  float *dx = Output(tensors, 4), *dgamma = Output(tensors, 5), *dbeta = Output(tensors, 6);
  const int64_t size = shapes[1][0], rows = Size(ranks[0], shapes[0]) / size;
  std::vector<Row> of_rows(rows);
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
      const float *from = x + row * size, *slope = dy + row * size;
      float* to = dx + row * size;
      const auto [mean, factor] = of_rows[row] = RowOf(from, size, *eps);
      float plain = 0, normalised = 0;  // means of the normalised input's gradient, alone and times that input
#pragma omp simd reduction(+ : plain, normalised)
      for (int64_t i = 0; i < size; ++i) {
        plain += slope[i] * gamma[i];
        normalised += slope[i] * gamma[i] * ((from[i] - mean) * factor);
      }
      plain /= size;
      normalised /= size;
      for (int64_t i = 0; i < size; ++i) {
        to[i] = factor * (slope[i] * gamma[i] - plain - (from[i] - mean) * factor * normalised);
      }
    }
    // Each thread adds up some columns over all rows, in their order, in double: there may be a hundred thousand rows.
#pragma omp for schedule(static)
    for (int64_t first = 0; first < size; first += kLanes) {
      const int64_t columns = std::min<int64_t>(kLanes, size - first);
      double scale[kLanes] = {}, shift[kLanes] = {};
      for (int64_t row = 0; row < rows; ++row) {
        const float *from = x + row * size + first, *slope = dy + row * size + first;
        const auto [mean, factor] = of_rows[row];
        for (int64_t i = 0; i < columns; ++i) {
          scale[i] += slope[i] * ((from[i] - mean) * factor);
          shift[i] += slope[i];
        }
      }
      for (int64_t i = 0; i < columns; ++i) {
        dgamma[first + i] = scale[i];
        dbeta[first + i] = shift[i];
      }
    }
  }
  return 0;
}
