include(${CMAKE_CURRENT_LIST_DIR}/../vector/flags.cmake)
target_sources(oarlock_cpu PRIVATE
  ${CMAKE_CURRENT_LIST_DIR}/attention.cpp
  ${CMAKE_CURRENT_LIST_DIR}/plan.cpp
  ${CMAKE_CURRENT_LIST_DIR}/reference.cpp)
oarlock_isa_sources(${CMAKE_CURRENT_LIST_DIR} attention avx2 avx512 avx512_bf16 amx)

if(OARLOCK_CHECKS)
  add_executable(attention_check ${CMAKE_CURRENT_LIST_DIR}/check.cpp)
  target_link_libraries(attention_check PRIVATE oarlock_cpu)
  add_executable(attention_bench ${CMAKE_CURRENT_LIST_DIR}/bench.cpp)
  target_link_libraries(attention_bench PRIVATE oarlock_cpu)
endif()
