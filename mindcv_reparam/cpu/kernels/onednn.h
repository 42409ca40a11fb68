// The part of oneDNN's C interface that the convolutions use.
//
// MindSpore's wheel brings the library (libdnnl.so.3) without its headers, so the declarations are written here: the
// names, types and numbers of oneDNN 3 (oneapi/dnnl/dnnl.h), which stay as they are within a major version.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

extern "C" {
typedef struct dnnl_engine* dnnl_engine_t;
typedef struct dnnl_stream* dnnl_stream_t;
typedef struct dnnl_memory* dnnl_memory_t;
typedef struct dnnl_memory_desc* dnnl_memory_desc_t;
typedef struct dnnl_primitive* dnnl_primitive_t;
typedef struct dnnl_primitive_desc* dnnl_primitive_desc_t;
typedef struct dnnl_primitive_attr* dnnl_primitive_attr_t;
typedef const struct dnnl_memory_desc* const_dnnl_memory_desc_t;
typedef const struct dnnl_primitive_desc* const_dnnl_primitive_desc_t;
typedef const struct dnnl_primitive_attr* const_dnnl_primitive_attr_t;
typedef struct {
  int arg;
  dnnl_memory_t memory;
} dnnl_exec_arg_t;

// Statuses, kinds and tags are enumerations there, which are ints.
int dnnl_engine_create(dnnl_engine_t*, int kind, size_t index);
int dnnl_threadpool_interop_stream_create(dnnl_stream_t*, dnnl_engine_t, void* pool);
int dnnl_threadpool_interop_get_max_concurrency(int*);
int dnnl_threadpool_interop_set_max_concurrency(int);
int dnnl_memory_desc_create_with_tag(dnnl_memory_desc_t*, int rank, const int64_t* dims, int type, int tag);
int dnnl_memory_desc_destroy(dnnl_memory_desc_t);
int dnnl_memory_desc_equal(const_dnnl_memory_desc_t, const_dnnl_memory_desc_t);
size_t dnnl_memory_desc_get_size(const_dnnl_memory_desc_t);
int dnnl_memory_create(dnnl_memory_t*, const_dnnl_memory_desc_t, dnnl_engine_t, void* data);
int dnnl_memory_destroy(dnnl_memory_t);
int dnnl_primitive_attr_create(dnnl_primitive_attr_t*);
int dnnl_primitive_attr_destroy(dnnl_primitive_attr_t);
int dnnl_primitive_attr_set_scratchpad_mode(dnnl_primitive_attr_t, int mode);
int dnnl_primitive_desc_destroy(dnnl_primitive_desc_t);
int dnnl_primitive_desc_query(const_dnnl_primitive_desc_t, int what, int index, void* result);
const_dnnl_memory_desc_t dnnl_primitive_desc_query_md(const_dnnl_primitive_desc_t, int what, int index);
int dnnl_primitive_create(dnnl_primitive_t*, const_dnnl_primitive_desc_t);
int dnnl_primitive_destroy(dnnl_primitive_t);
int dnnl_primitive_execute(dnnl_primitive_t, dnnl_stream_t, int count, const dnnl_exec_arg_t*);
int dnnl_reorder_primitive_desc_create(dnnl_primitive_desc_t*, const_dnnl_memory_desc_t from, dnnl_engine_t,
                                       const_dnnl_memory_desc_t to, dnnl_engine_t, const_dnnl_primitive_attr_t);
int dnnl_convolution_forward_primitive_desc_create(
    dnnl_primitive_desc_t*, dnnl_engine_t, int direction, int algorithm, const_dnnl_memory_desc_t src,
    const_dnnl_memory_desc_t weights, const_dnnl_memory_desc_t bias, const_dnnl_memory_desc_t dst,
    const int64_t* strides, const int64_t* dilates, const int64_t* padding_l, const int64_t* padding_r,
    const_dnnl_primitive_attr_t);
int dnnl_convolution_backward_data_primitive_desc_create(
    dnnl_primitive_desc_t*, dnnl_engine_t, int algorithm, const_dnnl_memory_desc_t diff_src,
    const_dnnl_memory_desc_t weights, const_dnnl_memory_desc_t diff_dst, const int64_t* strides,
    const int64_t* dilates, const int64_t* padding_l, const int64_t* padding_r, const_dnnl_primitive_desc_t forward,
    const_dnnl_primitive_attr_t);
int dnnl_convolution_backward_weights_primitive_desc_create(
    dnnl_primitive_desc_t*, dnnl_engine_t, int algorithm, const_dnnl_memory_desc_t src,
    const_dnnl_memory_desc_t diff_weights, const_dnnl_memory_desc_t diff_bias, const_dnnl_memory_desc_t diff_dst,
    const int64_t* strides, const int64_t* dilates, const int64_t* padding_l, const int64_t* padding_r,
    const_dnnl_primitive_desc_t forward, const_dnnl_primitive_attr_t);
}

enum : int {
  kSuccess = 0,
  kCpu = 1,
  kFloat32 = 3,
  kTagAny = 1,
  kTagPlain = 2,  // of one axis; of n axes it is that much more and one less
  kForwardTraining = 64,
  kConvolutionDirect = 1,
  kUserScratchpad = 1,
  kQueryImplementation = 8,
  kQueryArgument = 255,
};
enum Argument : int {
  kSrc = 1,
  kDst = 17,
  kWeights = 33,
  kBias = 41,
  kScratchpad = 80,
  kDiffSrc = 129,
  kDiffDst = 145,
  kDiffWeights = 161,
  kDiffBias = 169,
};

namespace dnnl::threadpool_interop {

// Later versions of 3 call wait(), earlier ones have no such function.
struct threadpool_iface {
  virtual int get_num_threads() const = 0;
  virtual bool get_in_parallel() const = 0;
  virtual void parallel_for(int count, const std::function<void(int, int)>& run) = 0;
  virtual uint64_t get_flags() const = 0;
  virtual void wait() = 0;
  virtual ~threadpool_iface() = default;
};

}  // namespace dnnl::threadpool_interop
