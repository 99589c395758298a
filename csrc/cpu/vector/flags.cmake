# Compiler flags of the files for one instruction set; the file name's ending says which. Such files must not define
# functions that other files may share (inline functions of common headers): the linker could pick their copy.
set(OARLOCK_FLAGS_avx2 -mavx2 -mfma)
# gcc 12 takes the AVX-512 intrinsics' "undefined" operands for uninitialised variables.
set(OARLOCK_FLAGS_avx512 ${OARLOCK_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -Wno-uninitialized
  -Wno-maybe-uninitialized)
set(OARLOCK_FLAGS_avx512_bf16 ${OARLOCK_FLAGS_avx512} -mavx512bf16)
set(OARLOCK_FLAGS_amx ${OARLOCK_FLAGS_avx512_bf16} -mavx512vbmi -mamx-tile -mamx-bf16)

# Adds folder/prefix_<isa>.cpp for each instruction set named, with its flags.
macro(oarlock_isa_sources folder prefix)
  foreach(isa ${ARGN})
    target_sources(oarlock_cpu PRIVATE ${folder}/${prefix}_${isa}.cpp)
    set_source_files_properties(${folder}/${prefix}_${isa}.cpp PROPERTIES COMPILE_OPTIONS "${OARLOCK_FLAGS_${isa}}")
  endforeach()
endmacro()
