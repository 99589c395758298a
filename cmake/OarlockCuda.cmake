# Finds a CUDA 13 compiler and its libraries and enables the language. Looked for, in order: OARLOCK_CUDA_ROOT (a toolkit, or
# the nvidia/cu13 folder of a Python environment), the PyPI packages of the Python that is found, the toolkit of the nvcc on
# PATH. The packages are enough, on a machine without a GPU too:
#   pip install nvidia-cuda-nvcc==13.0.* nvidia-cuda-runtime==13.0.* nvidia-cuda-cccl==13.0.* nvidia-nvvm==13.0.* \
#     nvidia-cuda-crt==13.0.* nvidia-cublas==13.0.* nvidia-nccl-cu13
# Sets OARLOCK_CUDA_INCLUDES and OARLOCK_CUDA_LIBRARIES (the static runtime and cuBLASLt).

set(OARLOCK_CUDA_ROOT "" CACHE PATH "CUDA toolkit, or the nvidia/cu13 folder of a Python environment")
set(OARLOCK_CUDA_ARCHITECTURES "80;90a" CACHE STRING "Compute capabilities to build the CUDA kernels for: 80, 86, 89, 90a")

set(_root "${OARLOCK_CUDA_ROOT}")
if(NOT _root)
  find_package(Python COMPONENTS Interpreter QUIET)
  if(Python_Interpreter_FOUND)
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -c
              "import importlib.util as u, os; s = u.find_spec('nvidia'); print(next((os.path.join(p, 'cu13') for p in (s.submodule_search_locations if s else []) if os.path.exists(os.path.join(p, 'cu13', 'bin', 'nvcc'))), ''))"
      OUTPUT_VARIABLE _root OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
endif()
if(NOT _root)
  find_program(_nvcc nvcc PATHS /usr/local/cuda/bin)
  if(_nvcc)
    file(REAL_PATH "${_nvcc}" _nvcc)
    get_filename_component(_root "${_nvcc}/../.." ABSOLUTE)
  endif()
endif()
if(NOT EXISTS "${_root}/bin/nvcc")
  message(FATAL_ERROR "OARLOCK_CUDA is on, and no nvcc was found: install the packages named in cmake/OarlockCuda.cmake, "
                      "or give -DOARLOCK_CUDA_ROOT=<toolkit>")
endif()

set(OARLOCK_CUDA_ROOT_FOUND "${_root}")
set(CMAKE_CUDA_COMPILER "${_root}/bin/nvcc")
# Machine code alone, unless it says otherwise: 80-virtual is code that the driver compiles at start, for tests on newer cards.
set(CMAKE_CUDA_ARCHITECTURES "")
foreach(_architecture IN LISTS OARLOCK_CUDA_ARCHITECTURES)
  if(NOT _architecture MATCHES "^(8[069]|90a)(-real|-virtual)?$")
    message(FATAL_ERROR "OARLOCK_CUDA_ARCHITECTURES names ${_architecture}; there are kernels for 80, 86, 89 and 90a")
  endif()
  if(NOT _architecture MATCHES "-")
    string(APPEND _architecture "-real")
  endif()
  list(APPEND CMAKE_CUDA_ARCHITECTURES "${_architecture}")
endforeach()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
# The packages keep their libraries where nvcc does not look.
set(_libraries "${_root}/lib" "${_root}/lib64" "${_root}/targets/x86_64-linux/lib")
string(APPEND CMAKE_CUDA_FLAGS_INIT " -L${_root}/lib")
enable_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13.0 OR CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 14.0)
  message(FATAL_ERROR "${CMAKE_CUDA_COMPILER} is version ${CMAKE_CUDA_COMPILER_VERSION}; 13.x is wanted")
endif()

find_library(OARLOCK_CUDART cudart_static PATHS ${_libraries} NO_DEFAULT_PATH REQUIRED)
# The package's library has its version in its name, a toolkit's link may not.
find_file(OARLOCK_CUBLASLT NAMES libcublasLt.so.13 libcublasLt.so PATHS ${_libraries} NO_DEFAULT_PATH REQUIRED)
find_path(_cublas_include cublasLt.h PATHS "${_root}/include" "${_root}/targets/x86_64-linux/include" NO_DEFAULT_PATH REQUIRED)
set(OARLOCK_CUDA_INCLUDES "${_root}/include" "${_cublas_include}")
find_package(Threads REQUIRED)
set(OARLOCK_CUDA_LIBRARIES "${OARLOCK_CUBLASLT}" "${OARLOCK_CUDART}" Threads::Threads ${CMAKE_DL_LIBS} rt)
