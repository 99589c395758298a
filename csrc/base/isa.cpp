#include "base/isa.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>

#include "base/error.h"

namespace oarlock {
namespace {

constexpr const char* kNames[] = {"avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"};

bool amx_permitted() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// CPUID leaf 7: gcc 12's __builtin_cpu_supports knows no AMX names.
bool amx_present() {
  unsigned eax = 7, ebx = 0, ecx = 0, edx = 0;
  __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  return (edx & (kBf16 | kTile | kInt8)) == (kBf16 | kTile | kInt8);
}

Isa detect() {
  __builtin_cpu_init();
  require(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"),
          "this processor lacks AVX2 and FMA, the least that Oarlock's CPU kernels need");
  if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")))
    return Isa::avx2;
  if (!__builtin_cpu_supports("avx512vnni")) return Isa::avx512;
  if (!__builtin_cpu_supports("avx512bf16")) return Isa::avx512_vnni;
  return amx_present() && amx_permitted() ? Isa::amx : Isa::avx512_bf16;
}

}  // namespace

const char* name_of(Isa isa) { return kNames[int(isa)]; }

Isa machine_isa() {
  static const Isa isa = detect();
  return isa;
}

Isa selected_isa() {
  Isa machine = machine_isa();
  const char* wanted = std::getenv("OARLOCK_CPU_ISA");
  if (wanted == nullptr || *wanted == 0) return machine;
  for (int level = 0; level <= int(Isa::amx); ++level) {
    if (std::string(wanted) != kNames[level]) continue;
    require(level <= int(machine), "OARLOCK_CPU_ISA=", wanted, ": this machine goes up to ", name_of(machine));
    return Isa(level);
  }
  throw InvalidArgument(concat("OARLOCK_CPU_ISA=", wanted, " is not one of avx2, avx512, avx512_vnni, avx512_bf16, amx"));
}

}  // namespace oarlock
