// Operators on the tensors of a whole network at once: one launch instead of one per tensor.

#include <algorithm>
#include <cmath>
#include <vector>

#include "tensors.h"

namespace {

constexpr int64_t kBlock = 1 << 14;

struct Block {  // elements of a tensor
  int tensor;
  int64_t begin, end;
};

// Of n tensors from the first on, in an order that does not depend on the threads.
std::vector<Block> Blocks(int first, int n, const int* ranks, int64_t* const* shapes) {
  std::vector<Block> blocks;
  for (int i = 0; i < n; ++i) {
    const int64_t size = Size(ranks[first + i], shapes[first + i]);
    for (int64_t begin = 0; begin < size; begin += kBlock) {
      blocks.push_back({i, begin, begin + kBlock < size ? begin + kBlock : size});
    }
  }
  return blocks;
}

bool IsFinite(const float* x, int64_t begin, int64_t end) {  // by the exponent's bits, all set in what is no number
  uint32_t largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t i = begin; i < end; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7f800000u;
    largest = bits > largest ? bits : largest;
  }
  return largest < 0x7f800000u;
}

}  // namespace

// tensors → 1 where all are finite, or 0
OPERATOR(all_finite) {
  const int n = count - 1;
  const std::vector<Block> blocks = Blocks(0, n, ranks, shapes);
  int infinite = 0;
#pragma omp parallel for schedule(static) reduction(+ : infinite)
  for (size_t i = 0; i < blocks.size(); ++i) {
    infinite += !IsFinite(Input(tensors, blocks[i].tensor), blocks[i].begin, blocks[i].end);
  }
  *Output(tensors, n) = infinite == 0;
  return 0;
}

// tensors → Σ x²
OPERATOR(square_sum) {
  const int n = count - 1;
  const std::vector<Block> blocks = Blocks(0, n, ranks, shapes);
  std::vector<double> sums(blocks.size());
#pragma omp parallel for schedule(static)
  for (size_t i = 0; i < blocks.size(); ++i) {
    const float* x = Input(tensors, blocks[i].tensor);
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = blocks[i].begin; j < blocks[i].end; ++j) sum += double(x[j]) * x[j];
    sums[i] = sum;
  }
  double sum = 0;
  for (double part : sums) sum += part;
  *Output(tensors, n) = sum;
  return 0;
}

// factor, n tensors → n tensors
OPERATOR(scaled) {
  const int n = (count - 1) / 2;
  const float factor = *Input(tensors, 0);
  const std::vector<Block> blocks = Blocks(1, n, ranks, shapes);
#pragma omp parallel for schedule(static)
  for (size_t i = 0; i < blocks.size(); ++i) {
    const float* x = Input(tensors, 1 + blocks[i].tensor);
    float* y = Output(tensors, 1 + n + blocks[i].tensor);
#pragma omp simd
    for (int64_t j = blocks[i].begin; j < blocks[i].end; ++j) y[j] = x[j] * factor;
  }
  return 0;
}

// (decay, whether to move), n averages, n values → 0; the averages are changed where they lie
OPERATOR(moving_average) {
  const int n = (count - 2) / 2;
  const float decay = Input(tensors, 0)[0], moves = Input(tensors, 0)[1];
  *Output(tensors, count - 1) = 0;
  if (moves == 0) return 0;
  const std::vector<Block> blocks = Blocks(1, n, ranks, shapes);
#pragma omp parallel for schedule(static)
  for (size_t i = 0; i < blocks.size(); ++i) {
    float* average = Output(tensors, 1 + blocks[i].tensor);
    const float* value = Input(tensors, 1 + n + blocks[i].tensor);
#pragma omp simd
    for (int64_t j = blocks[i].begin; j < blocks[i].end; ++j) {
      average[j] = average[j] * decay + value[j] * (1 - decay);
    }
  }
  return 0;
}

// n tensors, n others → 0; each changes places with its other
OPERATOR(exchange) {
  const int n = (count - 1) / 2;
  *Output(tensors, count - 1) = 0;
  const std::vector<Block> blocks = Blocks(0, n, ranks, shapes);
#pragma omp parallel for schedule(static)
  for (size_t i = 0; i < blocks.size(); ++i) {
    float* x = Output(tensors, blocks[i].tensor);
    std::swap_ranges(x + blocks[i].begin, x + blocks[i].end, Output(tensors, n + blocks[i].tensor) + blocks[i].begin);
  }
  return 0;
}

// (step size, β₁, β₂, ε, scale of the decays, whether to update), (coupled decays, decoupled decays, factors on the
// step size) of n, n weights, n first moments, n second moments, n gradients → 0; weights and moments are changed
OPERATOR(adam_update) {
  const int n = (count - 3) / 4;
  const float* s = Input(tensors, 0);
  const float beta1 = s[1], beta2 = s[2], eps = s[3];
  *Output(tensors, count - 1) = 0;
  if (s[5] == 0) return 0;
  const std::vector<Block> blocks = Blocks(2, n, ranks, shapes);
#pragma omp parallel for schedule(static)
  for (size_t i = 0; i < blocks.size(); ++i) {
    const int k = blocks[i].tensor;
    const float* factors = Input(tensors, 1);
    const float coupled = factors[k], decoupled = factors[n + k] * s[4], step = s[0] * factors[2 * n + k];
    float* weight = Output(tensors, 2 + k);
    float* m = Output(tensors, 2 + n + k);
    float* v = Output(tensors, 2 + 2 * n + k);
    const float* gradient = Input(tensors, 2 + 3 * n + k);
#pragma omp simd
    for (int64_t j = blocks[i].begin; j < blocks[i].end; ++j) {
      const float g = gradient[j] + coupled * weight[j];
      m[j] += (g - m[j]) * (1 - beta1);
      v[j] += (g * g - v[j]) * (1 - beta2);
      weight[j] -= step * (m[j] / (std::sqrt(v[j]) + eps) + decoupled * weight[j]);
    }
  }
  return 0;
}
