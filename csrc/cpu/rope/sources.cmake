include(${CMAKE_CURRENT_LIST_DIR}/../vector/flags.cmake)
target_sources(oarlock_cpu PRIVATE
  ${CMAKE_CURRENT_LIST_DIR}/rope.cpp
  ${CMAKE_CURRENT_LIST_DIR}/reference.cpp)
oarlock_isa_sources(${CMAKE_CURRENT_LIST_DIR} rope avx2 avx512 avx512_bf16)

if(OARLOCK_CHECKS)
  add_executable(rope_check ${CMAKE_CURRENT_LIST_DIR}/check.cpp)
  target_link_libraries(rope_check PRIVATE oarlock_cpu)
  add_executable(rope_bench ${CMAKE_CURRENT_LIST_DIR}/bench.cpp)
  target_link_libraries(rope_bench PRIVATE oarlock_cpu)
endif()
