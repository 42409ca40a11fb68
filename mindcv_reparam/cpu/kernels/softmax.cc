// Softmax over the last axis, and its gradient.

#include "exponential.h"
#include "tensors.h"

// x → y
OPERATOR(softmax) {
  const float* x = Input(tensors, 0);
  float* y = Output(tensors, 1);
  const int64_t size = shapes[0][ranks[0] - 1], rows = Size(ranks[0], shapes[0]) / size;
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = x + row * size;
    float* to = y + row * size;
    float largest = from[0], sum = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < size; ++i) largest = std::max(largest, from[i]);
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; ++i) {
      const float below = from[i] - largest;
      to[i] = below < -87.0f ? 0.0f : Exp(below);  // what a mask blocks counts nothing
      sum += to[i];
    }
    for (int64_t i = 0; i < size; ++i) to[i] /= sum;
  }
  return 0;
}

// y, dy → dx
OPERATOR(softmax_grad) {
  const float *y = Input(tensors, 0), *dy = Input(tensors, 1);
  float* dx = Output(tensors, 2);
  const int64_t size = shapes[0][ranks[0] - 1], rows = Size(ranks[0], shapes[0]) / size;
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const float *share = y + row * size, *slope = dy + row * size;
    float* to = dx + row * size;
    float mean = 0;
#pragma omp simd reduction(+ : mean)
    for (int64_t i = 0; i < size; ++i) mean += share[i] * slope[i];
    for (int64_t i = 0; i < size; ++i) to[i] = share[i] * (slope[i] - mean);
  }
  return 0;
}
