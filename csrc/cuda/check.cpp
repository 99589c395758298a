// Compares every CUDA kernel with a plain reference on the host over random shapes, page tables and types. Exit status 0
// means that all agree. `check quick` is the short form for compute-sanitizer. OARLOCK_CUDA_KERNELS=portable checks those of
// older cards on a newer one.
#include "cuda/check.h"

#include <exception>

using namespace oarlock;
using namespace oarlock::cuda;

int main(int count, char** arguments) try {
  const std::string only = count > 1 ? arguments[1] : "all";
  check::Report report;
  report.quick = count > 2 && std::string(arguments[2]) == "quick";
  for (DType type : {DType::bf16, DType::f16}) {
    if (report.quick && type == DType::f16) continue;  // other arithmetic, the same accesses
    for (bool invariant : {false, true}) {
      OpsLimits limits;
      limits.max_tokens = 2048;
      limits.max_sequences = 256;
      limits.heads = 32;
      limits.head_dim = 128;
      limits.qkv_cols = 6144;
      limits.gated_rows = 30000;
      limits.vocab = 128256;
      CudaOps ops(0, type, limits, invariant);
      if (type == DType::bf16 && !invariant) std::printf("%s kernels\n", ops.device().kernels->name);
      auto run = [&](const char* name, void (*part)(CudaOps&, check::Report&)) {
        if (only != "all" && only != name) return;
        const int before = report.cases;
        part(ops, report);
        ops.synchronize();
        std::printf("%s %s%s: %d cases\n", name, check::name(type), invariant ? " batch-invariant" : "", report.cases - before);
        std::fflush(stdout);
      };
      run("linear", check::check_linear);
      if (invariant) run("attention", check::check_each_token);
      if (invariant && !report.quick) run("attention", check::check_attention);  // whose kernel for few sequences is another
      if (invariant) continue;
      run("elementwise", check::check_elementwise);
      run("attention", check::check_attention);
      run("attention", check::check_shared_prefixes);
      if (type == DType::bf16) run("sampler", check::check_sampler);
    }
  }
  std::printf("%d cases, %d failures\n", report.cases, report.failures);
  return report.failures == 0 ? 0 : 1;
} catch (const std::exception& error) {
  std::printf("FAILED: %s\n", error.what());
  return 1;
}
