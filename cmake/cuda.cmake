# fastadv/_C_cuda: the kernels of csrc/cuda for every architecture served, and PTX for later ones.
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12)
  message(FATAL_ERROR "error: nvcc must be 12.0 or newer, got ${CMAKE_CUDA_COMPILER_VERSION}")
endif()
if(FASTADV_CUDA_ARCHITECTURES)
  set(CUDA_ARCHITECTURES ${FASTADV_CUDA_ARCHITECTURES})
elseif(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)  # the first that knows sm_100
  set(CUDA_ARCHITECTURES 80-real 90)
else()
  set(CUDA_ARCHITECTURES 80-real 90-real 100)
endif()

file(GLOB CUDA_SOURCES CONFIGURE_DEPENDS csrc/cuda/*.cu csrc/cuda/*.cpp)
add_library(_C_cuda MODULE ${CUDA_SOURCES})
set_target_properties(_C_cuda PROPERTIES PREFIX "" SUFFIX ".so" CUDA_STANDARD 20
    CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF CUDA_VISIBILITY_PRESET hidden
    CUDA_ARCHITECTURES "${CUDA_ARCHITECTURES}"
    CUDA_RUNTIME_LIBRARY Static)  # one build serves every torch, whatever runtime that brings
target_include_directories(_C_cuda SYSTEM PRIVATE ${FASTADV_TORCH_DIR}/include)
target_compile_definitions(_C_cuda PRIVATE USE_CUDA TORCH_TARGET_VERSION=0x020a000000000000ULL)
# A fused multiply-add would round once where the formula rounds twice: backends would differ.
target_compile_options(_C_cuda PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:--fmad=false;-Xcompiler=-Wall,-Wextra>")
target_link_directories(_C_cuda PRIVATE ${FASTADV_TORCH_DIR}/lib)
target_link_libraries(_C_cuda PRIVATE torch_cpu c10)
# The one symbol of libtorch_cuda that is used (the current stream) stays undefined where torch has
# no CUDA: the module then compiles and links, to be tested, and loads beside a CUDA torch only.
if(EXISTS ${FASTADV_TORCH_DIR}/lib/libtorch_cuda.so)
  target_link_libraries(_C_cuda PRIVATE torch_cuda)
  target_link_options(_C_cuda PRIVATE -Wl,-z,defs)
endif()
