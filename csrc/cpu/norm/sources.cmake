include(${CMAKE_CURRENT_LIST_DIR}/../vector/flags.cmake)
target_sources(oarlock_cpu PRIVATE
  ${CMAKE_CURRENT_LIST_DIR}/norm.cpp
  ${CMAKE_CURRENT_LIST_DIR}/reference.cpp)
oarlock_isa_sources(${CMAKE_CURRENT_LIST_DIR} norm avx2 avx512)
