// Convolutions of any geometry and their gradients, by MindSpore's own oneDNN.
//
// MindSpore asks it for weights as they lie in memory, for which it has no good kernel; here it chooses their layout, and
// that of the maps where moving them costs less than it saves. Primitives are kept by shape.

#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "onednn.h"
#include "tensors.h"

namespace {

using Dims = std::vector<int64_t>;

constexpr int kMostParts = 16;
constexpr size_t kMostKept = 4096;   // operations, of ever new shapes
constexpr int64_t kFewPixels = 128;  // of a map whose product with 1×1 weights is slow as a plain matrix product

// Into how many parts work is cut: the same for any number of threads, and with it every sum.
int Parts() {
  static const int parts = std::clamp<int>(sysconf(_SC_NPROCESSORS_CONF), 1, kMostParts);
  return parts;
}

struct Pool : dnnl::threadpool_interop::threadpool_iface {
  int get_num_threads() const override { return Parts(); }
  bool get_in_parallel() const override { return omp_in_parallel(); }
  void parallel_for(int count, const std::function<void(int, int)>& run) override {
#pragma omp parallel for schedule(static, 1) if (count > 1)
    for (int i = 0; i < count; ++i) run(i, count);
  }
  uint64_t get_flags() const override { return 0; }
  void wait() override {}
};

struct Failure {
  int status;
};

void Check(int status) {
  if (status != kSuccess) throw Failure{status};
}

dnnl_engine_t Engine() {
  static const dnnl_engine_t engine = [] {
    dnnl_engine_t made;
    Check(dnnl_engine_create(&made, kCpu, 0));
    return made;
  }();
  return engine;
}

dnnl_stream_t Stream() {
  static Pool pool;
  thread_local const dnnl_stream_t stream = [] {
    dnnl_stream_t made;
    Check(dnnl_threadpool_interop_stream_create(&made, Engine(), &pool));
    return made;
  }();
  return stream;
}

dnnl_primitive_attr_t CallersScratch() {
  static const dnnl_primitive_attr_t attributes = [] {
    dnnl_primitive_attr_t made;
    Check(dnnl_primitive_attr_create(&made));
    Check(dnnl_primitive_attr_set_scratchpad_mode(made, kUserScratchpad));
    return made;
  }();
  return attributes;
}

// Memory of a call, kept for the next ones: fresh pages cost as much as a small convolution.
class Scratch {
 public:
  explicit Scratch(size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      block_ = free_.back();
      free_.pop_back();
    }
    if (block_.size < size) {
      std::free(block_.data);
      block_ = {static_cast<char*>(std::aligned_alloc(kAlignment, size)), size};
    }
  }
  ~Scratch() {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(block_);
  }

  char* Data() const { return block_.data; }
  static size_t Aligned(size_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

 private:
  struct Block {
    char* data = nullptr;
    size_t size = 0;
  };
  static constexpr size_t kAlignment = 4096;
  static inline std::mutex mutex_;
  static inline std::vector<Block> free_;

  Block block_;
};

// The description of a tensor, as it lies in MindSpore's memory or as oneDNN likes it.
class Layout {
 public:
  explicit Layout(const Dims& dims, bool any = false) {
    if (dims.empty()) return;  // of no tensor
    const int rank = dims.size();
    Check(dnnl_memory_desc_create_with_tag(&desc_, rank, dims.data(), kFloat32, any ? kTagAny : kTagPlain + rank - 1));
  }
  Layout(const Layout&) = delete;
  ~Layout() {
    if (desc_ != nullptr) dnnl_memory_desc_destroy(desc_);
  }

  operator const_dnnl_memory_desc_t() const { return desc_; }

 private:
  dnnl_memory_desc_t desc_ = nullptr;
};

class Primitive {
 public:
  explicit Primitive(dnnl_primitive_desc_t desc) : desc_(desc) { Check(dnnl_primitive_create(&primitive_, desc)); }
  Primitive(const Primitive&) = delete;
  ~Primitive() {
    dnnl_primitive_destroy(primitive_);
    dnnl_primitive_desc_destroy(desc_);
  }

  const_dnnl_memory_desc_t Wants(int argument) const {
    return dnnl_primitive_desc_query_md(desc_, kQueryArgument, argument);
  }
  size_t Size(int argument) const { return Scratch::Aligned(dnnl_memory_desc_get_size(Wants(argument))); }

  void Run(std::vector<std::pair<int, void*>> tensors, char* scratch) const {
    tensors.emplace_back(kScratchpad, scratch);
    std::vector<dnnl_exec_arg_t> arguments;
    int status = kSuccess;
    for (const auto& [argument, data] : tensors) {
      arguments.push_back({argument, nullptr});
      status |= dnnl_memory_create(&arguments.back().memory, Wants(argument), Engine(), data);
    }
    if (status == kSuccess) status = dnnl_primitive_execute(primitive_, Stream(), arguments.size(), arguments.data());
    for (const dnnl_exec_arg_t& argument : arguments) dnnl_memory_destroy(argument.memory);
    Check(status);
  }

 private:
  dnnl_primitive_desc_t desc_;
  dnnl_primitive_t primitive_ = nullptr;
};

struct Operand {
  int argument;
  Dims dims;  // none: the convolution has no such operand
  bool written = false;
};

// A primitive with what it takes to hand it tensors as they lie in MindSpore's memory.
class Operation {
 public:
  Operation(dnnl_primitive_desc_t desc, std::vector<Operand> operands) : main_(desc), operands_(std::move(operands)) {
    scratch_ = main_.Size(kScratchpad);
    for (const Operand& operand : operands_) {
      moves_.push_back(nullptr);
      if (operand.dims.empty()) continue;
      const Layout plain(operand.dims);
      const const_dnnl_memory_desc_t wanted = main_.Wants(operand.argument);
      if (dnnl_memory_desc_equal(plain, wanted)) continue;
      const const_dnnl_memory_desc_t from = operand.written ? wanted : plain, to = operand.written ? plain : wanted;
      dnnl_primitive_desc_t move;
      Check(dnnl_reorder_primitive_desc_create(&move, from, Engine(), to, Engine(), CallersScratch()));
      moves_.back() = std::make_unique<Primitive>(move);
      scratch_ = std::max(scratch_, moves_.back()->Size(kScratchpad));
      copies_ += main_.Size(operand.argument);
    }
  }

  // ``tensors`` belong to the operands, one for each.
  void Run(const std::vector<void*>& tensors) const {
    const Scratch memory(scratch_ + copies_);
    std::vector<std::pair<int, void*>> arguments;
    char* free = memory.Data() + scratch_;
    for (size_t i = 0; i < operands_.size(); ++i) {
      if (operands_[i].dims.empty()) continue;
      void* data = tensors[i];
      if (moves_[i]) {
        data = free;
        free += main_.Size(operands_[i].argument);
        if (!operands_[i].written) moves_[i]->Run({{kSrc, tensors[i]}, {kDst, data}}, memory.Data());
      }
      arguments.emplace_back(operands_[i].argument, data);
    }
    main_.Run(arguments, memory.Data());
    auto argument = arguments.begin();
    for (size_t i = 0; i < operands_.size(); ++i) {
      if (operands_[i].dims.empty()) continue;
      if (moves_[i] && operands_[i].written) moves_[i]->Run({{kSrc, argument->second}, {kDst, tensors[i]}}, memory.Data());
      ++argument;
    }
  }

 private:
  Primitive main_;
  std::vector<Operand> operands_;
  std::vector<std::unique_ptr<Primitive>> moves_;
  size_t scratch_ = 0, copies_ = 0;
};

enum Pass { kForward, kInputGradient, kWeightGradient };

struct Convolution {
  Dims x, weight, bias, y, strides, dilates, before, after;

  // ``geometry``: strides, dilations, padding above and on the left (negative: half of what is missing), has a bias.
  Convolution(const int64_t* x_shape, const int64_t* weight_shape, const int64_t* y_shape, const int64_t* geometry)
      : x(x_shape, x_shape + 4), weight(weight_shape, weight_shape + 4), y(y_shape, y_shape + 4),
        strides(geometry, geometry + 2), dilates{geometry[2] - 1, geometry[3] - 1} {
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t seen = (y[2 + axis] - 1) * strides[axis] + (weight[2 + axis] - 1) * geometry[2 + axis] + 1;
      const int64_t missing = std::max<int64_t>(0, seen - x[2 + axis]), given = geometry[4 + axis];
      before.push_back(given < 0 ? missing / 2 : given);
      after.push_back(std::max<int64_t>(0, seen - x[2 + axis] - before[axis]));
    }
    if (geometry[6]) bias = {weight[0]};
    if (const int64_t groups = x[1] / weight[1]; groups > 1) {
      weight[0] /= groups;
      weight.insert(weight.begin(), groups);
    }
  }

  Dims Key(Pass pass) const {
    Dims key = {pass};
    for (const Dims* dims : {&x, &weight, &bias, &y, &strides, &dilates, &before, &after}) {
      key.push_back(dims->size());
      key.insert(key.end(), dims->begin(), dims->end());
    }
    return key;
  }

  std::vector<Operand> Operands(Pass pass) const {
    if (pass == kForward) return {{kSrc, x}, {kWeights, weight}, {kBias, bias}, {kDst, y, true}};
    if (pass == kInputGradient) return {{kDiffDst, y}, {kWeights, weight}, {kDiffSrc, x, true}};
    return {{kSrc, x}, {kDiffDst, y}, {kDiffWeights, weight, true}, {kDiffBias, bias, true}};
  }

  // Whether the maps are better left as they are than moved to a layout of oneDNN's and back.
  bool PrefersPlainMaps(Pass pass) const {
    const bool pointwise = weight.end()[-1] == 1 && weight.end()[-2] == 1;
    if (pointwise) return y[2] * y[3] >= kFewPixels;
    return pass == kInputGradient && (strides[0] > 1 || strides[1] > 1);
  }

  dnnl_primitive_desc_t Describe(Pass pass, bool plain_maps) const {
    const Layout src(x, !plain_maps), dst(y, !plain_maps), weights(weight, true), biases(bias);
    dnnl_primitive_desc_t forward, desc;
    Check(dnnl_convolution_forward_primitive_desc_create(
        &forward, Engine(), kForwardTraining, kConvolutionDirect, src, weights, biases, dst, strides.data(),
        dilates.data(), before.data(), after.data(), CallersScratch()));
    if (pass == kForward) return forward;
    const int status =
        pass == kInputGradient
            ? dnnl_convolution_backward_data_primitive_desc_create(
                  &desc, Engine(), kConvolutionDirect, src, weights, dst, strides.data(), dilates.data(),
                  before.data(), after.data(), forward, CallersScratch())
            : dnnl_convolution_backward_weights_primitive_desc_create(
                  &desc, Engine(), kConvolutionDirect, src, weights, biases, dst, strides.data(), dilates.data(),
                  before.data(), after.data(), forward, CallersScratch());
    dnnl_primitive_desc_destroy(forward);
    Check(status);
    return desc;
  }

  dnnl_primitive_desc_t Describe(Pass pass) const {
    const bool plain = PrefersPlainMaps(pass);
    const dnnl_primitive_desc_t first = Describe(pass, plain);
    if (!IsReference(first)) return first;
    dnnl_primitive_desc_destroy(first);
    return Describe(pass, !plain);
  }

  static bool IsReference(dnnl_primitive_desc_t desc) {
    const char* name = "";
    Check(dnnl_primitive_desc_query(desc, kQueryImplementation, 0, &name));
    return std::string(name).find("ref") != std::string::npos;
  }
};

std::shared_ptr<const Operation> Find(const Convolution& convolution, Pass pass) {
  static std::mutex mutex;
  static auto& kept = *new std::map<Dims, std::shared_ptr<const Operation>>;  // to the end: oneDNN may end before
  const std::lock_guard<std::mutex> lock(mutex);
  if (kept.size() >= kMostKept) kept.clear();
  std::shared_ptr<const Operation>& found = kept[convolution.Key(pass)];
  if (!found) {
    int threads;
    Check(dnnl_threadpool_interop_get_max_concurrency(&threads));
    Check(dnnl_threadpool_interop_set_max_concurrency(Parts()));
    try {
      found = std::make_shared<Operation>(convolution.Describe(pass), convolution.Operands(pass));
    } catch (const Failure&) {
      dnnl_threadpool_interop_set_max_concurrency(threads);
      throw;
    }
    dnnl_threadpool_interop_set_max_concurrency(threads);
  }
  return found;
}

int Run(const Convolution& convolution, Pass pass, const std::vector<void*>& tensors) {
  try {
    Find(convolution, pass)->Run(tensors);
    return 0;
  } catch (const Failure& failure) {
    return failure.status;
  }
}

}  // namespace

// x, weight, bias, geometry → y
OPERATOR(convolution) {
  const Convolution convolution(shapes[0], shapes[1], shapes[4], static_cast<const int64_t*>(tensors[3]));
  return Run(convolution, kForward, {tensors[0], tensors[1], tensors[2], tensors[4]});
}

// dy, weight, x, geometry → dx
OPERATOR(convolution_input_grad) {
  const Convolution convolution(shapes[2], shapes[1], shapes[0], static_cast<const int64_t*>(tensors[3]));
  return Run(convolution, kInputGradient, {tensors[0], tensors[1], tensors[4]});
}

// x, dy, weight, bias, geometry → dweight, dbias
OPERATOR(convolution_weight_grad) {
  const Convolution convolution(shapes[0], shapes[2], shapes[1], static_cast<const int64_t*>(tensors[4]));
  return Run(convolution, kWeightGradient, {tensors[0], tensors[1], tensors[5], tensors[6]});
}
