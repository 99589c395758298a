include(${CMAKE_CURRENT_LIST_DIR}/../vector/flags.cmake)
target_sources(oarlock_cpu PRIVATE
  ${CMAKE_CURRENT_LIST_DIR}/norm.cpp
  ${CMAKE_CURRENT_LIST_DIR}/reference.cpp)
oarlock_isa_sources(${CMAKE_CURRENT_LIST_DIR} norm avx2 avx512 avx512_bf16)

if(OARLOCK_CHECKS)
  add_executable(norm_check ${CMAKE_CURRENT_LIST_DIR}/check.cpp)
  target_link_libraries(norm_check PRIVATE oarlock_cpu)
  add_executable(norm_bench ${CMAKE_CURRENT_LIST_DIR}/bench.cpp)
  target_link_libraries(norm_bench PRIVATE oarlock_cpu)
endif()
