target_sources(oarlock_cpu PRIVATE ${CMAKE_CURRENT_LIST_DIR}/ranks.cpp)

if(OARLOCK_CHECKS)
  add_executable(ranks_check ${CMAKE_CURRENT_LIST_DIR}/check.cpp)
  target_link_libraries(ranks_check PRIVATE oarlock_cpu)
endif()
