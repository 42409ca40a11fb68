// Every operator of mindcv_reparam/cpu/kernels on odd shapes, built with sanitizers; convolutions beside plain sums.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <random>
#include <vector>

#include "onednn.h"
#include "tensors.h"

#define DECLARE(name) OPERATOR(name)
DECLARE(convolution);
DECLARE(convolution_input_grad);
DECLARE(convolution_weight_grad);
DECLARE(adam_update);
DECLARE(all_finite);
DECLARE(exchange);
DECLARE(gelu_exact);
DECLARE(gelu_exact_grad);
DECLARE(gelu_tanh);
DECLARE(gelu_tanh_grad);
DECLARE(group_norm);
DECLARE(group_norm_grad);
DECLARE(layer_norm);
DECLARE(layer_norm_grad);
DECLARE(moving_average);
DECLARE(scale);
DECLARE(scale_grad);
DECLARE(scaled);
DECLARE(softmax);
DECLARE(softmax_grad);
DECLARE(square_sum);
DECLARE(depthwise_3_1);
DECLARE(depthwise_3_1_grad);
DECLARE(depthwise_3_2);
DECLARE(depthwise_3_2_grad);
DECLARE(depthwise_5_1);
DECLARE(depthwise_5_1_grad);
DECLARE(depthwise_5_2);
DECLARE(depthwise_5_2_grad);
DECLARE(depthwise_7_1);
DECLARE(depthwise_7_1_grad);
DECLARE(depthwise_7_2);
DECLARE(depthwise_7_2_grad);

std::mt19937 generator(0);
struct T {
  std::vector<int64_t> shape;
  std::vector<float> data;
  T(std::vector<int64_t> s) : shape(std::move(s)) {
    int64_t n = 1;
    for (auto d : shape) n *= d;
    data.resize(n);
    std::normal_distribution<float> draw;
    for (auto& v : data) v = draw(generator);
  }
};
using Op = int (*)(int, void**, int*, int64_t**, const char**, void*, void*);
int Call(Op op, std::vector<T*> ts, const std::vector<int64_t>* geometry = nullptr, size_t at = 0) {
  std::vector<void*> data;
  std::vector<int> ranks;
  std::vector<int64_t*> shapes;
  int64_t seven = 7;
  for (size_t i = 0; i < ts.size() + (geometry != nullptr); ++i) {
    if (geometry && i == at) {
      data.push_back(const_cast<int64_t*>(geometry->data()));
      ranks.push_back(1);
      shapes.push_back(&seven);
      continue;
    }
    T* t = ts[i - (geometry && i > at)];
    data.push_back(t->data.data());
    ranks.push_back(t->shape.size());
    shapes.push_back(t->shape.data());
  }
  return op(data.size(), data.data(), ranks.data(), shapes.data(), nullptr, nullptr, nullptr);
}
void Expect(bool ok, const char* what) {
  if (!ok) {
    std::printf("wrong: %s\n", what);
    std::exit(1);
  }
}

void Convolutions() {
  auto pick = [](int low, int high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); };
  for (int trial = 0; trial < 120; ++trial) {
    const int64_t groups = pick(0, 2) ? 1 : pick(2, 4), ci = pick(1, 9), co = pick(1, 17), n = pick(1, 3),
                  kh = pick(1, 5), kw = pick(1, 5);
    const int64_t sh = pick(1, 3), sw = pick(1, 3), dh = pick(1, 2), dw = pick(1, 2), ph = pick(0, kh),
                  pw = pick(0, kw);
    const int64_t h = std::max<int64_t>(1, (kh - 1) * dh + 1 - 2 * ph) + pick(0, 20),
                  w = std::max<int64_t>(1, (kw - 1) * dw + 1 - 2 * pw) + pick(0, 20);
    const int64_t oh = (h + 2 * ph - (kh - 1) * dh - 1) / sh + 1, ow = (w + 2 * pw - (kw - 1) * dw - 1) / sw + 1;
    T x({n, groups * ci, h, w}), weight({groups * co, ci, kh, kw}), bias({groups * co}), y({n, groups * co, oh, ow}),
        dy(y.shape), dx(x.shape), dweight(weight.shape), dbias(bias.shape);
    const std::vector<int64_t> geometry = {sh, sw, dh, dw, ph, pw, 1};
    Expect(!Call(convolution, {&x, &weight, &bias, &y}, &geometry, 3), "status y");
    Expect(!Call(convolution_input_grad, {&dy, &weight, &x, &dx}, &geometry, 3), "status dx");
    Expect(!Call(convolution_weight_grad, {&x, &dy, &weight, &bias, &dweight, &dbias}, &geometry, 4), "status dweight");
    std::vector<double> ey(y.data.size()), ex(x.data.size()), ew(weight.data.size()), eb(bias.data.size());
    for (int64_t b = 0; b < n; ++b)
      for (int64_t o = 0; o < groups * co; ++o)
        for (int64_t r = 0; r < oh; ++r)
          for (int64_t c = 0; c < ow; ++c) {
            const int64_t iy = ((b * groups * co + o) * oh + r) * ow + c;
            ey[iy] += bias.data[o];
            eb[o] += dy.data[iy];
            for (int64_t i = 0; i < ci; ++i)
              for (int64_t u = 0; u < kh; ++u)
                for (int64_t v = 0; v < kw; ++v) {
                  const int64_t row = r * sh + u * dh - ph, col = c * sw + v * dw - pw;
                  if (row < 0 || row >= h || col < 0 || col >= w) continue;
                  const int64_t ix = ((b * groups * ci + o / co * ci + i) * h + row) * w + col,
                                iw = ((o * ci + i) * kh + u) * kw + v;
                  ey[iy] += double(x.data[ix]) * weight.data[iw];
                  ex[ix] += double(dy.data[iy]) * weight.data[iw];
                  ew[iw] += double(dy.data[iy]) * x.data[ix];
                }
          }
    auto close = [](const std::vector<float>& a, const std::vector<double>& e, const char* what) {
      double most = 0, error = 0;
      for (size_t i = 0; i < a.size(); ++i) {
        most = std::max(most, std::abs(e[i]));
        error = std::max(error, std::abs(a[i] - e[i]));
      }
      Expect(error <= 5e-6 * most, what);
    };
    close(y.data, ey, "y");
    close(dx.data, ex, "dx");
    close(dweight.data, ew, "dweight");
    close(dbias.data, eb, "dbias");
  }
}
// Tensors of no dimension, of no element, of one block and of several.
void ManyTensors() {
  std::vector<T> w{T({}), T({0}), T({3, 5}), T({20000})}, m = w, v = w, g = w, products = w;
  T sum({1}), two({1}), scalars({6}), factors({3, 4}), average({2});
  for (auto& x : v) {
    for (auto& one : x.data) one = std::fabs(one);
  }
  two.data = {2}, scalars.data = {0.1f, 0.9f, 0.99f, 1e-8f, 1, 1}, average.data = {0.5f, 1};
  std::vector<T*> all, update{&scalars, &factors}, scale{&two}, mean{&average};
  for (auto& x : w) all.push_back(&x);
  for (auto* tensors : {&w, &m, &v, &g}) {
    for (auto& x : *tensors) update.push_back(&x);
  }
  for (auto* tensors : {&w, &products}) {
    for (auto& x : *tensors) scale.push_back(&x);
  }
  for (auto* tensors : {&w, &m}) {
    for (auto& x : *tensors) mean.push_back(&x);
  }
  for (auto* tensors : {&all, &update, &mean}) tensors->push_back(&sum);
  double expected = 0;
  for (auto& x : w) {
    for (double one : x.data) expected += one * one;
  }
  Expect(!Call(square_sum, all) && std::fabs(sum.data[0] - expected) < 1e-6 * expected, "square sum");
  Expect(!Call(scaled, scale) && products[3].data[19999] == 2 * w[3].data[19999], "scaled");
  const float half = (w[3].data[17000] + m[3].data[17000]) / 2;
  Expect(!Call(moving_average, mean) && std::fabs(w[3].data[17000] - half) < 1e-6, "average");
  const float first = m[0].data[0] + (g[0].data[0] + factors.data[0] * w[0].data[0] - m[0].data[0]) * (1 - 0.9f);
  Expect(!Call(adam_update, update) && std::fabs(m[0].data[0] - first) < 1e-6, "update");
  mean.erase(mean.begin());  // w and m
  const float last = w[3].data[19999], other = m[3].data[19999];
  Expect(!Call(exchange, mean) && w[3].data[19999] == other && m[3].data[19999] == last, "exchange");
  Expect(!Call(all_finite, all) && sum.data[0] == 1, "finite");
  w[0].data[0] = NAN;
  Expect(!Call(all_finite, all) && sum.data[0] == 0, "not finite");
}

int main() {
  Convolutions();
  ManyTensors();
  for (auto shape : {std::vector<int64_t>{1}, {3, 5, 7, 9}, {1, 1, 1, 1}, {2, 17, 1, 3}}) {
    T x(shape), dy(shape), y(shape);
    for (Op op : {gelu_exact, gelu_tanh}) Expect(!Call(op, {&x, &y}), "gelu");
    for (Op op : {gelu_exact_grad, gelu_tanh_grad}) Expect(!Call(op, {&x, &dy, &y}), "gelu grad");
    T last({shape.back()}), dscale(last.shape), dshift(last.shape), epsilon({1}), well({1});
    epsilon.data[0] = 1e-5f;
    Expect(!Call(layer_norm, {&x, &last, &last, &epsilon, &y}), "ln");
    Expect(!Call(layer_norm_grad, {&x, &last, &dy, &epsilon, &y, &dscale, &dshift}), "ln grad");
    Expect(!Call(softmax, {&x, &y}), "softmax");
    Expect(!Call(softmax_grad, {&y, &dy, &x}), "softmax grad");
    Expect(!Call(all_finite, {&x, &well}) && well.data[0] == 1, "finite");
    x.data.back() = -INFINITY;
    Expect(!Call(all_finite, {&x, &well}) && well.data[0] == 0, "not finite");
    x.data.back() = 1;
    if (shape.size() != 4) continue;
    T gamma({shape[1]}), beta({shape[1]}), eps({1}), dgamma({shape[1]}), dbeta({shape[1]}), f({shape[1], 1, 1}),
        df({shape[1], 1, 1}), g({shape[0], 1, 1, 1}), dg({shape[0], 1, 1, 1});
    eps.data[0] = 1e-5f;
    Expect(!Call(group_norm, {&x, &gamma, &beta, &eps, &y}), "gn");
    Expect(!Call(group_norm_grad, {&x, &gamma, &dy, &eps, &y, &dgamma, &dbeta}), "gn grad");
    Expect(!Call(scale, {&x, &f, &y}), "scale");
    Expect(!Call(scale, {&x, &g, &y}), "scale");
    Expect(!Call(scale_grad, {&x, &dy, &f, &df}), "scale");
    Expect(!Call(scale_grad, {&x, &dy, &g, &dg}), "scale");
  }
  struct D {
    Op forward, backward;
    int64_t size, stride;
  };
  for (D d : {D{depthwise_3_1, depthwise_3_1_grad, 3, 1}, D{depthwise_3_2, depthwise_3_2_grad, 3, 2},
              D{depthwise_5_1, depthwise_5_1_grad, 5, 1}, D{depthwise_5_2, depthwise_5_2_grad, 5, 2},
              D{depthwise_7_1, depthwise_7_1_grad, 7, 1}, D{depthwise_7_2, depthwise_7_2_grad, 7, 2}})
    for (int64_t h : {1, 2, 9, 16, 17})
      for (int64_t w : {1, 3, 8, 15, 40})
        for (int64_t m : {1, 2}) {
          T x({2, 3, h, w}), weight({3 * m, 1, d.size, d.size}), bias({3 * m}),
              y({2, 3 * m, (h - 1) / d.stride + 1, (w - 1) / d.stride + 1}), dx(x.shape), dw(weight.shape),
              db(bias.shape);
          Expect(!Call(d.forward, {&x, &weight, &bias, &y}), "depthwise");
          Expect(!Call(d.backward, {&x, &weight, &y, &bias, &dx, &dw, &db}), "depthwise grad");
        }
  std::puts("well");
}
