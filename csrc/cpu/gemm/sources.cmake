include(${CMAKE_CURRENT_LIST_DIR}/../vector/flags.cmake)
set(GEMM_FILES ${CMAKE_CURRENT_LIST_DIR})
target_sources(oarlock_cpu PRIVATE ${GEMM_FILES}/memory.cpp ${GEMM_FILES}/blocks.cpp ${GEMM_FILES}/pack.cpp
  ${GEMM_FILES}/dispatch.cpp ${GEMM_FILES}/reference.cpp)

# A kernel file for an instruction set: the common flags of a level and those that only products need.
function(gemm_kernels isa level)
  target_sources(oarlock_cpu PRIVATE ${GEMM_FILES}/gemm_${isa}.cpp)
  set_source_files_properties(${GEMM_FILES}/gemm_${isa}.cpp PROPERTIES COMPILE_OPTIONS "${OARLOCK_FLAGS_${level}};${ARGN}")
endfunction()
gemm_kernels(avx2 avx2 -mf16c)
gemm_kernels(avx512 avx512 -mf16c -mprefer-vector-width=512)
gemm_kernels(avx512_vnni avx512 -mavx512vnni -mf16c -mprefer-vector-width=512)
gemm_kernels(avx512_bf16 avx512_bf16 -mprefer-vector-width=512)
gemm_kernels(amx amx -mf16c -mprefer-vector-width=512)

if(OARLOCK_CHECKS)
  add_executable(gemm_check ${GEMM_FILES}/check.cpp)
  target_link_libraries(gemm_check PRIVATE oarlock_cpu)
endif()
