include(${CMAKE_CURRENT_LIST_DIR}/../vector/flags.cmake)
target_sources(oarlock_cpu PRIVATE
  ${CMAKE_CURRENT_LIST_DIR}/sampler.cpp
  ${CMAKE_CURRENT_LIST_DIR}/draw.cpp
  ${CMAKE_CURRENT_LIST_DIR}/parts.cpp
  ${CMAKE_CURRENT_LIST_DIR}/edit.cpp
  ${CMAKE_CURRENT_LIST_DIR}/reference.cpp)
oarlock_isa_sources(${CMAKE_CURRENT_LIST_DIR} scan avx2 avx512)

if(OARLOCK_CHECKS)
  add_executable(sampler_check ${CMAKE_CURRENT_LIST_DIR}/check.cpp)
  target_link_libraries(sampler_check PRIVATE oarlock_cpu)
  add_executable(sampler_bench ${CMAKE_CURRENT_LIST_DIR}/bench.cpp)
  target_link_libraries(sampler_bench PRIVATE oarlock_cpu)
endif()
