// The few PTX instructions that the kernels use and CUDA C++ has no name for: barriers in shared memory, bulk copies, matrix
// fragments, and the two halves of a programmatic dependent launch.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace oarlock::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// On Hopper every kernel of a step is launched while its predecessor still runs. depend() returns once the predecessor's
// results are visible; before it a kernel may only read what no kernel of the step writes (weights, the plan) and may write
// nothing. Older cards run one kernel after the other, and have nothing to wait for.
__device__ __forceinline__ void depend() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the successor's blocks start as soon as there is room for them.
__device__ __forceinline__ void release_successor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void barrier_init(uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

// Makes initialised barriers visible to the copy engine; a __syncthreads() must follow.
__device__ __forceinline__ void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives and announces the bytes that bulk copies will bring before the phase completes.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "again:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra done;\nbra again;\ndone:\n}" ::"r"(
          shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Whether a barrier's first phase is complete.
__device__ __forceinline__ bool barrier_has_turned(uint64_t* barrier) {
  uint32_t turned;
  asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], 0;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(turned)
               : "r"(shared_address(barrier))
               : "memory");
  return turned != 0;
}

// L2 policies: weights and old keys pass through once a step and should not push out what is read again.
__device__ __forceinline__ uint64_t policy_evict_first() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// A contiguous piece of device memory to shared memory; 16-byte aligned, completes on the barrier.
__device__ __forceinline__ void bulk_load(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// A box of the tensor map's matrix (see make_tensor_map) to shared memory: from row `row` and column 64 * `column` on.
__device__ __forceinline__ void tensor_load(void* to, const CUtensorMap* map, int column, int row, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {0, %2, %3}], [%4];" ::"r"(
          shared_address(to)),
      "l"(map), "r"(row), "r"(column), "r"(shared_address(barrier))
      : "memory");
}

__device__ __forceinline__ void tensor_load(void* to, const CUtensorMap* map, int column, int row, uint64_t* barrier,
                                            uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {0, %2, %3}], [%4], %5;" ::"r"(shared_address(to)),
      "l"(map), "r"(row), "r"(column), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

// ---- clusters ----
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// The same box for every block of the cluster whose bit is set in `blocks`, at the same place and on the same barrier of each.
__device__ __forceinline__ void tensor_load_shared(void* to, const CUtensorMap* map, int column, int row, uint64_t* barrier,
                                                   int blocks) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {0, %2, %3}], [%4], %5;" ::"r"(shared_address(to)),
      "l"(map), "r"(row), "r"(column), "r"(shared_address(barrier)), "h"(uint16_t(blocks))
      : "memory");
}

// The same place in the shared memory of another block of the cluster.
__device__ __forceinline__ uint32_t peer_address(const void* pointer, int rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(pointer)), "r"(rank));
  return address;
}

// Arrives at another block's barrier. No data goes with it: what was read here may be overwritten.
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier, int rank) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(peer_address(barrier, rank)) : "memory");
}

__device__ __forceinline__ float4 load_from(const float4* pointer, int rank) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(peer_address(pointer, rank))
               : "memory");
  return v;
}

__device__ __forceinline__ int64_t clock_cycles() {
  int64_t now;
  asm volatile("mov.u64 %0, %clock64;" : "=l"(now));
  return now;
}

// How fast a product that waits for its predecessor asks for its first weights. All at once they would be 27 MB, and what the
// kernels before it read would come after them, microseconds later. When `ready` (of one arrival) is, there is no more waiting.
class Pace {
 public:
  __device__ Pace(int cycles, uint64_t* ready) : cycles_(cycles), ready_(ready), begin_(clock_cycles()) {}
  // Until the request number `done` is due; false when the predecessor is done before.
  __device__ __forceinline__ bool wait(int done) const {
    while (!barrier_has_turned(ready_)) {
      if (clock_cycles() - begin_ >= int64_t(done) * cycles_) return true;
    }
    return false;
  }

 private:
  const int cycles_;
  uint64_t* const ready_;
  const int64_t begin_;
};

// Four 8x8 matrices of 16-bit elements: the fragments of mma.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// D[16, 8] += A[16, 16] B[16, 8] by one warp.
template <typename T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void mma<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Barrier number `id` among `threads` threads of the block (0 is __syncthreads).
template <int id>
__device__ __forceinline__ void named_barrier(int threads) {
  asm volatile("bar.sync %0, %1;" ::"n"(id), "r"(threads) : "memory");
}

// Orders ordinary writes to shared memory before reads by the copy engine and the matrix units.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Shared memory laid out in the 128-byte swizzle: byte `column` of row `row`, rows of 128 bytes.
__device__ __forceinline__ uint32_t swizzled(uint32_t row, uint32_t column) { return row * 128 + (column ^ ((row & 7) << 4)); }

}  // namespace oarlock::cuda
