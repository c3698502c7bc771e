/* The twin for x86-64 with AVX2. Compiled with -mavx2 -mf16c, so nothing in this file may run
 * before the dispatcher has looked at the processor, except the function below, which only returns
 * an address. Without those flags, or on another architecture, there is no such twin. */
#include "csrc/kernels/reduce.h"

#if defined(__x86_64__) && defined(__AVX2__)

#include "csrc/kernels/reduce_body.h"

const cc__kernels *cc__kernels_avx2(void) {
    return &TABLE;
}

#else

const cc__kernels *cc__kernels_avx2(void) {
    return NULL;
}

#endif
