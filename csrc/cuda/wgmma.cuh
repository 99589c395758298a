// Hopper's warpgroup matrix multiply (wgmma), one struct for an element type and a number of columns: D[64, N] += A[64, 16]
// B[16, N]. A comes from shared memory (ss) or registers (rs); B from shared memory, K-major, or with transposed = 1 MN-major.
// The instruction names every register of its sums, hence the lists.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace oarlock::cuda {

template <typename T, int N>
struct Wgmma;

// clang-format off
#define OARLOCK_NAMES_4 "%0, %1, %2, %3"
#define OARLOCK_NAMES_8 OARLOCK_NAMES_4 \
  ", %4, %5, %6, %7"
#define OARLOCK_NAMES_16 OARLOCK_NAMES_8 \
  ", %8, %9, %10, %11, %12, %13, %14, %15"
#define OARLOCK_NAMES_32 OARLOCK_NAMES_16 \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define OARLOCK_NAMES_48 OARLOCK_NAMES_32 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define OARLOCK_NAMES_56 OARLOCK_NAMES_48 \
  ", %48, %49, %50, %51, %52, %53, %54, %55"
#define OARLOCK_NAMES_64 OARLOCK_NAMES_56 \
  ", %56, %57, %58, %59, %60, %61, %62, %63"
#define OARLOCK_NAMES_96 OARLOCK_NAMES_64 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define OARLOCK_NAMES_112 OARLOCK_NAMES_96 \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define OARLOCK_NAMES_128 OARLOCK_NAMES_112 \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define OARLOCK_SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define OARLOCK_SUMS_8(i) OARLOCK_SUMS_4(i), OARLOCK_SUMS_4(i + 4)
#define OARLOCK_SUMS_16(i) OARLOCK_SUMS_8(i), OARLOCK_SUMS_8(i + 8)
#define OARLOCK_SUMS_32(i) OARLOCK_SUMS_16(i), OARLOCK_SUMS_16(i + 16)
#define OARLOCK_SUMS_48(i) OARLOCK_SUMS_32(i), OARLOCK_SUMS_16(i + 32)
#define OARLOCK_SUMS_56(i) OARLOCK_SUMS_48(i), OARLOCK_SUMS_8(i + 48)
#define OARLOCK_SUMS_64(i) OARLOCK_SUMS_32(i), OARLOCK_SUMS_32(i + 32)
#define OARLOCK_SUMS_96(i) OARLOCK_SUMS_64(i), OARLOCK_SUMS_32(i + 64)
#define OARLOCK_SUMS_112(i) OARLOCK_SUMS_96(i), OARLOCK_SUMS_16(i + 96)
#define OARLOCK_SUMS_128(i) OARLOCK_SUMS_64(i), OARLOCK_SUMS_64(i + 64)
// N columns are `count` sums a thread; the other arguments number the operands after them.
#define OARLOCK_WGMMA_SS(type, N, count, a, b, p)                                                                    \
  static __device__ __forceinline__ void ss(float (&d)[count], uint64_t left, uint64_t right, int accumulate) {        \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p ", 0;\n"                                                     \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" OARLOCK_NAMES_##count "}, "      \
                 "%" #a ", %" #b ", p, 1, 1, 0, 0;\n}\n"                                                               \
                 : OARLOCK_SUMS_##count(0)                                                                             \
                 : "l"(left), "l"(right), "r"(accumulate));                                                            \
  }
#define OARLOCK_WGMMA_RS(type, N, count, a, a1, a2, a3, b, p, t)                                                     \
  template <int transposed>                                                                                            \
  static __device__ __forceinline__ void rs(float (&d)[count], const uint32_t (&left)[4], uint64_t right,              \
                                            int accumulate) {                                                          \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p ", 0;\n"                                                     \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" OARLOCK_NAMES_##count "}, "      \
                 "{%" #a ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b ", p, 1, 1, %" #t ";\n}\n"                            \
                 : OARLOCK_SUMS_##count(0)                                                                             \
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right), "r"(accumulate),                \
                   "n"(transposed));                                                                                   \
  }
#define OARLOCK_WGMMA(T, type, N, count, a, b, p)        \
  template <>                                            \
  struct Wgmma<T, N> {                                   \
    OARLOCK_WGMMA_SS(type, N, count, a, b, p)            \
  };
#define OARLOCK_WGMMA_BOTH(T, type, N, count, a, b, p, a3, rb, rp, rt) \
  template <>                                                          \
  struct Wgmma<T, N> {                                                 \
    OARLOCK_WGMMA_SS(type, N, count, a, b, p)                          \
    OARLOCK_WGMMA_RS(type, N, count, a, b, p, a3, rb, rp, rt)          \
  };
#define OARLOCK_WGMMA_TYPES(macro, ...) macro(__nv_bfloat16, "bf16", __VA_ARGS__) macro(__half, "f16", __VA_ARGS__)
OARLOCK_WGMMA_TYPES(OARLOCK_WGMMA, 8, 4, 4, 5, 6)
OARLOCK_WGMMA_TYPES(OARLOCK_WGMMA, 16, 8, 8, 9, 10)
OARLOCK_WGMMA_TYPES(OARLOCK_WGMMA, 32, 16, 16, 17, 18)
OARLOCK_WGMMA_TYPES(OARLOCK_WGMMA_BOTH, 64, 32, 32, 33, 34, 35, 36, 37, 38)
OARLOCK_WGMMA_TYPES(OARLOCK_WGMMA, 96, 48, 48, 49, 50)
OARLOCK_WGMMA_TYPES(OARLOCK_WGMMA, 112, 56, 56, 57, 58)
OARLOCK_WGMMA_TYPES(OARLOCK_WGMMA_BOTH, 128, 64, 64, 65, 66, 67, 68, 69, 70)
OARLOCK_WGMMA_TYPES(OARLOCK_WGMMA, 192, 96, 96, 97, 98)
OARLOCK_WGMMA_TYPES(OARLOCK_WGMMA, 224, 112, 112, 113, 114)
OARLOCK_WGMMA_TYPES(OARLOCK_WGMMA, 256, 128, 128, 129, 130)
#undef OARLOCK_NAMES_4
#undef OARLOCK_SUMS_4
#undef OARLOCK_NAMES_8
#undef OARLOCK_SUMS_8
#undef OARLOCK_NAMES_16
#undef OARLOCK_SUMS_16
#undef OARLOCK_NAMES_32
#undef OARLOCK_SUMS_32
#undef OARLOCK_NAMES_48
#undef OARLOCK_SUMS_48
#undef OARLOCK_NAMES_56
#undef OARLOCK_SUMS_56
#undef OARLOCK_NAMES_64
#undef OARLOCK_SUMS_64
#undef OARLOCK_NAMES_96
#undef OARLOCK_SUMS_96
#undef OARLOCK_NAMES_112
#undef OARLOCK_SUMS_112
#undef OARLOCK_NAMES_128
#undef OARLOCK_SUMS_128
#undef OARLOCK_WGMMA_SS
#undef OARLOCK_WGMMA_RS
#undef OARLOCK_WGMMA
#undef OARLOCK_WGMMA_BOTH
#undef OARLOCK_WGMMA_TYPES
// clang-format on

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// Descriptor of an operand in shared memory in the 128-byte swizzle; rows of 128 bytes, eight of them 1024 bytes apart.
// `group` is the distance in bytes between the 64-element column groups of an MN-major operand (ignored when K-major).
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t address, uint32_t group = 16) {
  return uint64_t((address & 0x3ffff) >> 4) | (uint64_t(group >> 4) << 16) | (uint64_t(1024 >> 4) << 32) | (uint64_t(1) << 62);
}

}  // namespace oarlock::cuda
