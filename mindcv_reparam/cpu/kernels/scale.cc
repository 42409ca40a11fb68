// Products with a factor per channel or per image.
//
// MindSpore's own broadcasting keeps two lists of indices, 16 bytes for every element, as long as the network lives.

#include <vector>

#include "tensors.h"

namespace {

struct Rows {  // of a tensor, each multiplied by one of ``factors`` in turn
  int64_t count = 1, length = 1, factors;
};

// x has as many axes behind the one of the factors as they have.
Rows RowsOf(const int* ranks, int64_t** shapes, int factors) {
  Rows rows;
  rows.factors = shapes[factors][0];
  const int axis = ranks[0] - ranks[factors];
  for (int i = 0; i < ranks[0]; ++i) (i <= axis ? rows.count : rows.length) *= shapes[0][i];
  return rows;
}

}  // namespace

// x, factors (F, 1, …) → y
OPERATOR(scale) {
  const float *x = Input(tensors, 0), *factors = Input(tensors, 1);
  float* y = Output(tensors, 2);
  const Rows rows = RowsOf(ranks, shapes, 1);
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < rows.count; ++i) {
    const float factor = factors[i % rows.factors];
    for (int64_t j = i * rows.length; j < (i + 1) * rows.length; ++j) y[j] = x[j] * factor;
  }
  return 0;
}

// x, dy, factors → dfactors
OPERATOR(scale_grad) {
  const float *x = Input(tensors, 0), *dy = Input(tensors, 1);
  float* dfactors = Output(tensors, 3);
  const Rows rows = RowsOf(ranks, shapes, 2);
  std::vector<double> sums(rows.count);
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < rows.count; ++i) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = i * rows.length; j < (i + 1) * rows.length; ++j) sum += x[j] * dy[j];
    sums[i] = sum;
  }
  for (int64_t f = 0; f < rows.factors; ++f) {
    double sum = 0;
    for (int64_t i = f; i < rows.count; i += rows.factors) sum += sums[i];
    dfactors[f] = sum;
  }
  return 0;
}
