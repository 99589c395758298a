# Takes the libraries below the bindings from OARLOCK_PREBUILT, a build folder made with -DOARLOCK_CUDA=ON on this machine or
# another x86-64 one, so that a machine with a GPU compiles the few files of the bindings and nothing else. The sources must
# be those of that build. cuBLASLt and the static runtime are taken from OARLOCK_CUDA_ROOT or /usr/local/cuda.
set(OARLOCK_CUDA_ROOT "/usr/local/cuda" CACHE PATH "CUDA toolkit, or the nvidia/cu13 folder of a Python environment")
set(_libraries "${OARLOCK_CUDA_ROOT}/lib" "${OARLOCK_CUDA_ROOT}/lib64" "${OARLOCK_CUDA_ROOT}/targets/x86_64-linux/lib")
find_library(OARLOCK_CUDART cudart_static PATHS ${_libraries} NO_DEFAULT_PATH REQUIRED)
find_file(OARLOCK_CUBLASLT NAMES libcublasLt.so.13 libcublasLt.so PATHS ${_libraries} NO_DEFAULT_PATH REQUIRED)
find_package(Threads REQUIRED)

foreach(_name base cpu cuda comm model)
  find_library(OARLOCK_PREBUILT_${_name} oarlock_${_name} PATHS "${OARLOCK_PREBUILT}" "${OARLOCK_PREBUILT}/csrc/${_name}"
               NO_DEFAULT_PATH REQUIRED)
  add_library(oarlock_${_name} STATIC IMPORTED GLOBAL)
  set_target_properties(oarlock_${_name} PROPERTIES IMPORTED_LOCATION "${OARLOCK_PREBUILT_${_name}}")
endforeach()
target_link_libraries(oarlock_base INTERFACE Threads::Threads)
target_link_libraries(oarlock_cpu INTERFACE oarlock_base)
target_link_libraries(oarlock_comm INTERFACE oarlock_base ${CMAKE_DL_LIBS})
target_link_libraries(oarlock_cuda INTERFACE oarlock_base "${OARLOCK_CUBLASLT}" "${OARLOCK_CUDART}" ${CMAKE_DL_LIBS} rt)
target_link_libraries(oarlock_model INTERFACE oarlock_cpu oarlock_cuda)
target_compile_definitions(oarlock_model INTERFACE OARLOCK_CUDA)
