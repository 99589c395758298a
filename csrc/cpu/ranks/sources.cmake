target_sources(oarlock_cpu PRIVATE ${CMAKE_CURRENT_LIST_DIR}/ranks.cpp)
