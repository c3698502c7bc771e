/* Picks the twin for this machine, and runs it under a floating-point mode of our own. Programs set
 * flush-to-zero for speed, or another rounding for interval arithmetic; if that leaked in here, two
 * peers would get different bits from the same inputs. */
#include "csrc/kernels/reduce.h"

#include <assert.h>
#include <stdatomic.h>

#if defined(__x86_64__)
#include <xmmintrin.h>

typedef unsigned int float_mode;

static float_mode float_mode_enter(void) {
    float_mode saved = _mm_getcsr();
    _mm_setcsr(0x1f80); /* to nearest even, denormals kept, every exception masked */
    return saved;
}

static void float_mode_leave(float_mode saved) {
    _mm_setcsr(saved);
}

#elif defined(__aarch64__)

typedef uint64_t float_mode;

static float_mode float_mode_enter(void) {
    float_mode saved;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved) : : "memory");
    /* To nearest even, denormals kept, no traps. */
    __asm__ volatile("msr fpcr, %0" : : "r"(UINT64_C(0)) : "memory");
    return saved;
}

static void float_mode_leave(float_mode saved) {
    __asm__ volatile("msr fpcr, %0" : : "r"(saved) : "memory");
}

#else
#include <fenv.h>

typedef fenv_t float_mode;

static float_mode float_mode_enter(void) {
    float_mode saved;
    fegetenv(&saved);
    fesetenv(FE_DFL_ENV);
    return saved;
}

static void float_mode_leave(float_mode saved) {
    fesetenv(&saved);
}

#endif

static atomic_int portable_forced;

/* The twin for this machine's vectors, or NULL. */
static const cc__kernels *kernels_fast(void) {
#if defined(__x86_64__)
    /* That file's flags allow F16C too; every processor with AVX2 has it. */
    if (__builtin_cpu_supports("avx2")) {
        return cc__kernels_avx2();
    }
#endif
    return NULL;
}

static const cc__kernels *kernels(void) {
    const cc__kernels *fast = kernels_fast();
    int forced = atomic_load_explicit(&portable_forced, memory_order_relaxed);
    return forced || fast == NULL ? cc__kernels_portable() : fast;
}

int cc__kernels_force_portable(int portable) {
    atomic_store_explicit(&portable_forced, portable != 0, memory_order_relaxed);
    return kernels_fast() != NULL;
}

int cc__reduce_supports(cc_dtype dtype, cc_op op) {
    return (unsigned)dtype < CC__DTYPES && (unsigned)op < CC__OPS &&
           cc__kernels_portable()->reduce[dtype][op] != NULL;
}

void cc__reduce(void *dst, const void *left, const void *right, uint64_t count, cc_dtype dtype,
                cc_op op) {
    assert(cc__reduce_supports(dtype, op));
    cc__reduce_loop *loop = kernels()->reduce[dtype][op];
    float_mode saved = float_mode_enter();
    loop(dst, left, right, count);
    float_mode_leave(saved);
}

void cc__divide(void *dst, uint64_t count, cc_dtype dtype, uint32_t divisor) {
    assert(cc__reduce_supports(dtype, CC_AVG));
    cc__divide_loop *loop = kernels()->divide[dtype];
    float_mode saved = float_mode_enter();
    loop(dst, count, divisor);
    float_mode_leave(saved);
}

void cc__scale(void *dst, const void *src, uint64_t count, cc_dtype dtype, double factor) {
    assert(cc__reduce_supports(dtype, CC_PREMUL_SUM));
    cc__scale_loop *loop = kernels()->scale[dtype];
    float_mode saved = float_mode_enter();
    loop(dst, src, count, factor);
    float_mode_leave(saved);
}
