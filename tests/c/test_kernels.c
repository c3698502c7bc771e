/* The kernels give the same bits everywhere, and the right ones.
 *
 * Method: random bit patterns, rich in subnormals, infinities, NaNs with payloads, both zeros and
 * pairs of close exponents, go through both twins; each result must equal, bit by bit, a scalar
 * reference that gets there another way: float32 through float64, the 16-bit types by choosing the
 * nearer of two candidates, minimum and maximum by comparisons. */
#include "csrc/kernels/kernels.h"
#include "tests/c/check.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#define ELEMENTS 1031

static uint64_t seed = 20240229;
static int passed;

static uint64_t random_bits(void) { /* xorshift64* */
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return seed * UINT64_C(0x2545f4914f6cdd1d);
}

/* ---- elements as bits ------------------------------------------------------------------------ */

static const cc_dtype DTYPES[] = {CC_FLOAT32, CC_FLOAT64, CC_INT32, CC_INT64, CC_BFLOAT16,
                                  CC_FLOAT16, CC_INT8,    CC_INT16, CC_UINT8, CC_UINT16,
                                  CC_UINT32,  CC_UINT64,  CC_BOOL};
#define N_DTYPES (sizeof DTYPES / sizeof *DTYPES)

static int is_half(cc_dtype dtype) {
    return dtype == CC_BFLOAT16 || dtype == CC_FLOAT16;
}

static int is_float(cc_dtype dtype) {
    return dtype == CC_FLOAT32 || dtype == CC_FLOAT64 || is_half(dtype);
}

static int is_signed(cc_dtype dtype) {
    return dtype == CC_INT8 || dtype == CC_INT16 || dtype == CC_INT32 || dtype == CC_INT64;
}

static int exponent_shift(cc_dtype dtype) {
    return dtype == CC_FLOAT32 ? 23 : dtype == CC_FLOAT64 ? 52 : dtype == CC_FLOAT16 ? 10 : 7;
}

static uint64_t exponent_mask(cc_dtype dtype) {
    return dtype == CC_FLOAT64 ? 0x7ff : dtype == CC_FLOAT16 ? 0x1f : 0xff;
}

static uint64_t load(const void *from, uint64_t index, cc_dtype dtype) {
    size_t bytes = cc_dtype_bytes(dtype);
    uint64_t bits = 0;
    memcpy(&bits, (const char *)from + index * bytes, bytes); /* little endian */
    return bits;
}

static void store(void *to, uint64_t index, cc_dtype dtype, uint64_t bits) {
    size_t bytes = cc_dtype_bytes(dtype);
    memcpy((char *)to + index * bytes, &bits, bytes);
}

/* An element to be combined with `other`: often special, often of about the same magnitude. */
static uint64_t random_element(cc_dtype dtype, uint64_t other) {
    int bits = 8 * (int)cc_dtype_bytes(dtype);
    uint64_t any = random_bits(), width = UINT64_MAX >> (64 - bits);
    if (!is_float(dtype)) {
        return random_bits() % 4 ? any & width : ((random_bits() % 5) - 2 + (width >> 1)) & width;
    }
    int shift = exponent_shift(dtype);
    uint64_t fraction = (UINT64_C(1) << shift) - 1, exponent = exponent_mask(dtype) << shift;
    uint64_t sign = any & (UINT64_C(1) << (bits - 1));
    switch (random_bits() % 12) {
    case 0: return sign;
    case 1: return sign | exponent;
    case 2: return sign | exponent | ((any & fraction) | 1);
    case 3: return sign | (any & fraction);
    case 4: return sign | ((exponent - 1) & (exponent | fraction)); /* the largest finite */
    case 5: return sign | (any & 1 ? fraction : 1);                 /* the ends of the subnormals */
    case 6: return other ^ (UINT64_C(1) << (bits - 1));
    case 7:
    case 8:
    case 9: return sign | (other & exponent) | (any & fraction);
    case 10: return sign | (((other & exponent) >> 1) & exponent) | (any & fraction);
    default: return any & width;
    }
}

static double value_of_float16(uint64_t bits) {
    int exponent = (int)(bits >> 10 & 0x1f), fraction = (int)(bits & 0x3ff);
    double value = exponent == 0   ? ldexp(fraction, -24)
                   : exponent < 31 ? ldexp(1024 + fraction, exponent - 25)
                   : fraction == 0 ? INFINITY
                                   : NAN;
    return bits & 0x8000 ? -value : value;
}

static double value_of(uint64_t bits, cc_dtype dtype) {
    double wide;
    float narrow;
    uint32_t low = (uint32_t)(dtype == CC_BFLOAT16 ? bits << 16 : bits);
    if (dtype == CC_FLOAT16) {
        return value_of_float16(bits);
    }
    memcpy(&wide, &bits, 8);
    memcpy(&narrow, &low, 4);
    return dtype == CC_FLOAT64 ? wide : (double)narrow;
}

/* ---- the reference --------------------------------------------------------------------------- */

/* The 16-bit number nearest to a float32: of the two around it, the nearer, else the even one. */
static uint64_t nearest_half(float value, cc_dtype dtype) {
    uint64_t infinite = exponent_mask(dtype) << exponent_shift(dtype), below = 0;
    uint64_t sign = signbit(value) ? 0x8000 : 0;
    double exact = fabs((double)value);
    if (isinf(value)) {
        return sign | infinite;
    }
    for (uint64_t step = 0x4000; step > 0; step /= 2) { /* the largest that is not above */
        if (below + step < infinite && value_of(below + step, dtype) <= exact) {
            below += step;
        }
    }
    double low = value_of(below, dtype), high = value_of(below + 1, dtype);
    high = isinf(high) ? (dtype == CC_FLOAT16 ? 0x1p16 : 0x1p128) : high;
    if (exact - low != high - exact) {
        return sign | (exact - low < high - exact ? below : below + 1);
    }
    return sign | (below + (below & 1));
}

static uint64_t canonical_nan(cc_dtype dtype) {
    return (2 * exponent_mask(dtype) + 1) << (exponent_shift(dtype) - 1);
}

static uint64_t bits_of(double value, cc_dtype dtype) { /* rounds */
    if (isnan(value)) {
        return canonical_nan(dtype);
    }
    uint64_t bits = 0;
    float narrow = (float)value;
    if (is_half(dtype)) {
        return nearest_half(narrow, dtype);
    }
    memcpy(&bits, dtype == CC_FLOAT64 ? (void *)&value : (void *)&narrow, cc_dtype_bytes(dtype));
    return bits;
}

static uint64_t expected_integer(uint64_t a, uint64_t b, cc_dtype dtype, cc_op op) {
    int shift = 64 - 8 * (int)cc_dtype_bytes(dtype);
    int a_less = is_signed(dtype) ? (int64_t)(a << shift) < (int64_t)(b << shift) : a < b;
    switch (op) {
    case CC_SUM: return (a + b) & UINT64_MAX >> shift;
    case CC_PROD: return (a * b) & UINT64_MAX >> shift;
    case CC_BAND: return a & b;
    case CC_BOR: return a | b;
    case CC_BXOR: return a ^ b;
    default: return (op == CC_MIN) == a_less ? a : b;
    }
}

static uint64_t expected_bool(int a, int b, cc_op op) {
    switch (op) {
    case CC_SUM:
    case CC_MAX:
    case CC_BOR: return a || b;
    case CC_BXOR: return a != b;
    default: return a && b;
    }
}

static uint64_t expected(uint64_t a, uint64_t b, cc_dtype dtype, cc_op op) {
    if (dtype == CC_BOOL) {
        return expected_bool(a != 0, b != 0, op);
    }
    if (!is_float(dtype)) {
        return expected_integer(a, b, dtype, op);
    }
    volatile double x = value_of(a, dtype), y = value_of(b, dtype);
    if (op == CC_SUM || op == CC_AVG || op == CC_PREMUL_SUM) {
        return bits_of(x + y, dtype);
    }
    if (op == CC_PROD) {
        return bits_of(x * y, dtype);
    }
    if (isnan(x) || isnan(y)) {
        return canonical_nan(dtype);
    }
    int a_less = x < y || (x == y && signbit(x) && !signbit(y));
    return (op == CC_MIN) == a_less ? a : b;
}

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
