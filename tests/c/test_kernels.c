/* The kernels give the same bits everywhere, and the right ones.
 *
 * Method: random bit patterns, rich in subnormals, infinities, NaNs with payloads, both zeros and
 * pairs of close exponents, go through both twins; each result must equal, bit by bit, a scalar
 * reference that gets there another way: float32 through float64, the 16-bit types by choosing the
 * nearer of two candidates, minimum and maximum by comparisons. */
#include "tests/c/kernel_reference.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#define ELEMENTS 1031

static int passed;

/* ---- the tests ------------------------------------------------------------------------------- */

static void fill(void *left, void *right, uint64_t count, cc_dtype dtype) {
    for (uint64_t i = 0; i < count; i++) {
        uint64_t a = random_element(dtype, random_bits());
        store(left, i, dtype, a);
        store(right, i, dtype, random_element(dtype, a));
    }
}

/* Where dst is: apart, one of the operands, or both and the operands one. */
enum alias { APART, LEFT, RIGHT, ALL_ONE, ALIASES };

/* Runs the twin in force, with left, right and dst at given offsets from alignment. */
static void reduce_once(cc_dtype dtype, cc_op op, uint64_t count, enum alias alias,
                        const size_t offset[3]) {
    static char left[ELEMENTS * 8 + 64], right[sizeof left], apart[sizeof left];
    static char left_before[sizeof left], right_before[sizeof left], before[sizeof left];
    memset(apart, 0x5a, sizeof apart);
    fill(left + offset[0], right + offset[1], count, dtype);
    char *a = left + offset[0], *b = alias == ALL_ONE ? a : right + offset[1];
    char *whole = alias == APART ? apart : alias == RIGHT ? right : left;
    size_t start = offset[alias == APART ? 2 : alias == RIGHT ? 1 : 0];
    char *dst = whole + start;
    memcpy(left_before, a, count * cc_dtype_bytes(dtype));
    memcpy(right_before, b, count * cc_dtype_bytes(dtype));
    memcpy(before, whole, sizeof before);

    cc__reduce(dst, a, b, count, dtype, op);

    for (uint64_t i = 0; i < count; i++) {
        uint64_t x = load(left_before, i, dtype), y = load(right_before, i, dtype);
        uint64_t got = load(dst, i, dtype), want = expected(x, y, dtype, op);
        if (got != want) {
            fprintf(stderr, "dtype %d op %d: %" PRIx64 ", %" PRIx64 " gave %" PRIx64 "\n",
                    (int)dtype, (int)op, x, y, got);
        }
        CHECK_EQ(got, want);
    }
    size_t end = start + count * cc_dtype_bytes(dtype);
    CHECK(memcmp(whole, before, start) == 0);
    CHECK(memcmp(whole + end, before + end, sizeof before - end) == 0);
}

static void test_reduce(int portable) {
    cc__kernels_force_portable(portable);
    for (size_t d = 0; d < N_DTYPES; d++) {
        for (int op = CC_SUM; op <= CC_PREMUL_SUM; op++) {
            if (!cc__reduce_supports(DTYPES[d], (cc_op)op)) {
                continue;
            }
            for (uint64_t count = 0; count < 70; count++) {
                for (int alias = 0; alias < ALIASES; alias++) {
                    const size_t offset[3] = {random_bits() % 33, random_bits() % 33,
                                              random_bits() % 33};
                    reduce_once(DTYPES[d], (cc_op)op, count, (enum alias)alias, offset);
                }
            }
            for (int repeat = 0; repeat < 100; repeat++) {
                const size_t offset[3] = {0, 0, 0};
                reduce_once(DTYPES[d], (cc_op)op, ELEMENTS, (enum alias)(repeat % ALIASES), offset);
            }
        }
    }
    passed++;
}

/* Both twins, and the reference, for divisors that are and are not powers of two. */
static void test_divide(int portable) {
    static const uint32_t DIVISORS[] = {1, 2, 3, 5, 7, 8, 10, 17, 100, 1000, 1023, 1024};
    static char values[65536 * 2 + 64], original[sizeof values];
    cc__kernels_force_portable(portable);
    for (size_t n = 0; n < sizeof DIVISORS / sizeof *DIVISORS; n++) {
        for (size_t d = 0; d < N_DTYPES; d++) {
            cc_dtype dtype = DTYPES[d];
            uint64_t count = is_half(dtype) ? 65536 : 16000; /* of 16 bits: all there are */
            size_t offset = random_bits() % 33;
            if (!is_float(dtype)) {
                continue;
            }
            for (uint64_t i = 0; i < count; i++) {
                uint64_t bits = is_half(dtype) ? i : random_element(dtype, random_bits());
                store(values + offset, i, dtype, bits);
            }
            memcpy(original, values, sizeof values);
            cc__divide(values + offset, count, dtype, DIVISORS[n]);
            for (uint64_t i = 0; i < count; i++) {
                volatile double x = value_of(load(original + offset, i, dtype), dtype);
                CHECK_EQ(load(values + offset, i, dtype), bits_of(x / DIVISORS[n], dtype));
            }
            CHECK(memcmp(values, original, offset) == 0);
        }
    }
    passed++;
}

/* Both twins, and the reference, in place and apart. */
static void test_scale(int portable) {
    static const double FACTORS[] = {1,     0.5,      -3,        1e-3, 1.0 / 3, 65504, 1e30,
                                     1e-30, INFINITY, -INFINITY, NAN,  0,       -0.0,  1e300};
    static char values[65536 * 2 + 64], apart[sizeof values];
    cc__kernels_force_portable(portable);
    for (size_t n = 0; n < sizeof FACTORS / sizeof *FACTORS; n++) {
        for (size_t d = 0; d < N_DTYPES; d++) {
            cc_dtype dtype = DTYPES[d];
            uint64_t count = is_half(dtype) ? 65536 : 16000;
            volatile double factor = dtype == CC_FLOAT64 ? FACTORS[n] : (float)FACTORS[n];
            if (!is_float(dtype)) {
                continue;
            }
            for (uint64_t i = 0; i < count; i++) {
                store(values, i, dtype, is_half(dtype) ? i : random_element(dtype, random_bits()));
            }
            cc__scale(apart, values, count, dtype, FACTORS[n]);
            for (uint64_t i = 0; i < count; i++) {
                volatile double x = value_of(load(values, i, dtype), dtype);
                CHECK_EQ(load(apart, i, dtype), bits_of(x * factor, dtype));
            }
            cc__scale(values, values, count, dtype, FACTORS[n]);
            CHECK(memcmp(values, apart, count * cc_dtype_bytes(dtype)) == 0);
        }
    }
    passed++;
}

/* The examples a reader would ask about, written out by hand. */
static void test_examples(int portable) {
    static const struct {
        cc_dtype dtype;
        cc_op op;
        uint64_t a, b, result;
    } EXAMPLES[] = {
        {CC_FLOAT32, CC_SUM, 0x3f800000, 0x33800000, 0x3f800000}, /* 1 + 2^-24: a tie, to even */
        {CC_FLOAT32, CC_SUM, 0x3f800001, 0x33800000, 0x3f800002},
        {CC_FLOAT32, CC_SUM, 0x00000001, 0x00000001, 0x00000002}, /* subnormals are kept */
        {CC_FLOAT32, CC_SUM, 0x7f7fffff, 0x7f7fffff, 0x7f800000}, /* overflow */
        {CC_FLOAT32, CC_SUM, 0x7f800000, 0xff800000, 0x7fc00000}, /* inf - inf */
        {CC_FLOAT32, CC_SUM, 0xff812345, 0x3f800000, 0x7fc00000}, /* a signalling NaN */
        {CC_FLOAT32, CC_SUM, 0x80000000, 0x80000000, 0x80000000},
        {CC_FLOAT32, CC_SUM, 0x80000000, 0x00000000, 0x00000000},
        {CC_FLOAT32, CC_MIN, 0x00000000, 0x80000000, 0x80000000},
        {CC_FLOAT32, CC_MAX, 0x80000000, 0x00000000, 0x00000000},
        {CC_FLOAT32, CC_MAX, 0xffc00001, 0x3f800000, 0x7fc00000},
        {CC_FLOAT32, CC_MIN, 0x3f800000, 0x7f812345, 0x7fc00000},
        {CC_FLOAT32, CC_MIN, 0xff800000, 0xff7fffff, 0xff800000},
        {CC_FLOAT32, CC_MAX, 0x7f800000, 0xff800001, 0x7fc00000}, /* next to infinity */
        {CC_FLOAT64, CC_MAX, UINT64_C(0x7ff0000000000001), 0, UINT64_C(0x7ff8000000000000)},
        {CC_FLOAT64, CC_MIN, 0, UINT64_C(0x7ff0000000000000), 0},
        {CC_BFLOAT16, CC_SUM, 0x3f80, 0x3b80, 0x3f80}, /* 1 + 2^-8: a tie, to even */
        {CC_BFLOAT16, CC_SUM, 0x3f81, 0x3b80, 0x3f82},
        {CC_BFLOAT16, CC_SUM, 0x7f7f, 0x7f7f, 0x7f80},
        {CC_BFLOAT16, CC_SUM, 0x7fa5, 0x3f80, 0x7fc0},
        {CC_BFLOAT16, CC_MAX, 0x8000, 0x0000, 0x0000},
        {CC_FLOAT16, CC_SUM, 0x3c00, 0x1000, 0x3c00}, /* 1 + 2^-11: a tie, to even */
        {CC_FLOAT16, CC_SUM, 0x3c01, 0x1000, 0x3c02},
        {CC_FLOAT16, CC_SUM, 0x7bff, 0x4bff, 0x7bff},  /* 65504 + 15.99 stays finite; */
        {CC_FLOAT16, CC_SUM, 0x7bff, 0x4c00, 0x7c00},  /* + 16: a tie, to even */
        {CC_FLOAT16, CC_PROD, 0x0400, 0x3800, 0x0200}, /* half the smallest normal number */
        {CC_FLOAT16, CC_PROD, 0x0001, 0x3800, 0x0000}, /* half the smallest of all: to even */
        {CC_FLOAT16, CC_MAX, 0xfe01, 0x3c00, 0x7e00},
        {CC_UINT8, CC_SUM, 0xff, 2, 1},
        {CC_INT8, CC_MIN, 0x80, 0x7f, 0x80},
        {CC_UINT8, CC_MIN, 0x80, 0x7f, 0x7f},
        {CC_INT16, CC_PROD, 0x0100, 0x0100, 0},
        {CC_UINT64, CC_MAX, UINT64_MAX, 1, UINT64_MAX},
        {CC_BOOL, CC_SUM, 2, 4, 1}, /* any but 0 is true */
        {CC_BOOL, CC_BXOR, 2, 4, 0},
        {CC_BOOL, CC_PROD, 2, 0, 0},
        {CC_INT32, CC_SUM, 0x7fffffff, 1, 0x80000000},
        {CC_INT32, CC_MIN, 0x80000000, 1, 0x80000000},
        {CC_INT64, CC_SUM, UINT64_MAX, 1, 0},
        {CC_FLOAT64, CC_SUM, UINT64_C(0x7ff0000000000001), 0, UINT64_C(0x7ff8000000000000)},
        {CC_FLOAT64, CC_MIN, 0, UINT64_C(1) << 63, UINT64_C(1) << 63},
    };
    cc__kernels_force_portable(portable);
    for (size_t e = 0; e < sizeof EXAMPLES / sizeof *EXAMPLES; e++) {
        char a[9 * 8], b[sizeof a], dst[sizeof a]; /* nine: vectors and a remainder */
        for (uint64_t i = 0; i < 9; i++) {
            store(a, i, EXAMPLES[e].dtype, EXAMPLES[e].a);
            store(b, i, EXAMPLES[e].dtype, EXAMPLES[e].b);
        }
        cc__reduce(dst, a, b, 9, EXAMPLES[e].dtype, EXAMPLES[e].op);
        for (uint64_t i = 0; i < 9; i++) {
            CHECK_EQ(load(dst, i, EXAMPLES[e].dtype), EXAMPLES[e].result);
        }
    }
    passed++;
}

/* ---- the caller's floating-point mode -------------------------------------------------------- */

#if defined(__x86_64__)
/* Flush to zero with denormals as zero; rounding down, up, to zero; exceptions that trap. */
static const uint64_t MODES[] = {0x9fc0, 0x3f80, 0x5f80, 0x7f80, 0x0000, 0xffc0};

static uint64_t get_mode(void) {
    return _mm_getcsr();
}

static void set_mode(uint64_t mode) {
    _mm_setcsr((unsigned)mode);
}
#elif defined(__aarch64__)
/* Flush to zero; rounding up, down, to zero; default NaN. */
static const uint64_t MODES[] = {1 << 24, 1 << 22, 2 << 22, 3 << 22, 1 << 25};

static uint64_t get_mode(void) {
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}

static void set_mode(uint64_t mode) {
    __asm__ volatile("msr fpcr, %0" : : "r"(mode) : "memory");
}
#else
#error "say here how this architecture's floating-point mode is set"
#endif

static void test_caller_mode(int portable) {
    static char left[ELEMENTS * 8], right[sizeof left], plain[sizeof left], odd[sizeof left];
    cc__kernels_force_portable(portable);
    for (size_t m = 0; m < sizeof MODES / sizeof *MODES; m++) {
        for (size_t d = 0; d < N_DTYPES; d++) {
            for (int op = CC_SUM; op <= CC_PREMUL_SUM; op++) {
                if (!cc__reduce_supports(DTYPES[d], (cc_op)op)) {
                    continue;
                }
                fill(left, right, ELEMENTS, DTYPES[d]);
                cc__reduce(plain, left, right, ELEMENTS, DTYPES[d], (cc_op)op);
                if (op == CC_AVG) {
                    cc__divide(plain, ELEMENTS, DTYPES[d], 3);
                    cc__scale(plain, plain, ELEMENTS, DTYPES[d], 0.3);
                }
                uint64_t usual = get_mode();
                set_mode(MODES[m]);
                cc__reduce(odd, left, right, ELEMENTS, DTYPES[d], (cc_op)op);
                if (op == CC_AVG) {
                    cc__divide(odd, ELEMENTS, DTYPES[d], 3);
                    cc__scale(odd, odd, ELEMENTS, DTYPES[d], 0.3);
                }
                uint64_t after = get_mode();
                set_mode(usual);
                CHECK_EQ(after, MODES[m]);
                CHECK(memcmp(plain, odd, ELEMENTS * cc_dtype_bytes(DTYPES[d])) == 0);
            }
        }
    }
    passed++;
}

static void test_supports(void) {
    for (int dtype = -1; dtype < 16; dtype++) {
        for (int op = -1; op < 12; op++) {
            int valid = dtype >= CC_FLOAT32 && dtype <= CC_BOOL && op >= CC_SUM;
            int real = valid && is_float((cc_dtype)dtype);
            int of_floats = op == CC_AVG || op == CC_PREMUL_SUM;
            int of_bits = op == CC_BAND || op == CC_BOR || op == CC_BXOR;
            int want = valid && op <= CC_PREMUL_SUM && !(of_floats && !real) && !(of_bits && real);
            CHECK_EQ(cc__reduce_supports((cc_dtype)dtype, (cc_op)op), want);
        }
    }
    passed++;
}

int main(int argc, char **argv) {
    seed = argc > 1 ? strtoull(argv[1], NULL, 10) | 1 : seed;
    int twins = cc__kernels_force_portable(0) ? 2 : 1;
    printf("seed %" PRIu64 ", %s\n", seed, twins == 2 ? "portable and AVX2" : "portable only");
    fflush(stdout);
    test_supports();
    for (int portable = 1; portable > 1 - twins; portable--) {
        test_examples(portable);
        test_reduce(portable);
        test_divide(portable);
        test_scale(portable);
        test_caller_mode(portable);
    }
    printf("test_kernels: %d passed, 0 failed\n", passed);
    return 0;
}
