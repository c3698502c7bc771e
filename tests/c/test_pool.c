/* Goal: a block is nobody else's while it is taken, is as large as asked for and aligned, comes again
 * for about the same length, and goes when nobody wants it.
 * Method: every byte of a block is written with its owner's mark and looked at before it is given
 * back, by several threads at once; what is kept shows in the address that comes again. */
#include "csrc/base/pool.h"
#include "tests/c/check.h"

#include <pthread.h>
#include <stdint.h>
#include <string.h>

#define MB (1u << 20)
#define THREADS 4

static int passed;

static void test_a_block_comes_again(void) {
    cc__pool_trim(100, INT64_MAX);
    void *first = cc__pool_take(8 * MB);
    CHECK(first != NULL && (uintptr_t)first % 64 == 0);
    memset(first, 1, 8 * MB);
    cc__pool_give(first);
    void *smaller = cc__pool_take(5 * MB);
    CHECK(smaller == first);
    cc__pool_give(smaller);
    void *far_smaller = cc__pool_take(MB); /* it would tie up eight times its length */
    CHECK(far_smaller != NULL && far_smaller != first);
    void *larger = cc__pool_take(16 * MB);
    CHECK(larger != NULL && larger != first);
    memset(larger, 2, 16 * MB);
    cc__pool_give(far_smaller);
    cc__pool_give(larger);
    cc__pool_give(NULL);
    cc__pool_trim(200, INT64_MAX);
    passed++;
}

/* More than are kept; and odd lengths, down to none at all. */
static void test_many_blocks(void) {
    void *blocks[12];
    for (size_t i = 0; i < 12; i++) {
        size_t bytes = i < 6 ? i * 37 : i * 300000 + 1;
        blocks[i] = cc__pool_take(bytes);
        CHECK(blocks[i] != NULL && (uintptr_t)blocks[i] % 64 == 0);
        memset(blocks[i], (int)i, bytes);
    }
    for (size_t i = 0; i < 12; i++) cc__pool_give(blocks[i]);
    CHECK(cc__pool_take(SIZE_MAX) == NULL);
    CHECK(cc__pool_take(SIZE_MAX / 2) == NULL);
    cc__pool_trim(300, INT64_MAX);
    passed++;
}

static void *work(void *argument) {
    uint8_t mark = *(const uint8_t *)argument;
    for (size_t turn = 0; turn < 400; turn++) {
        size_t bytes = 100000 + turn * 977 % 400000;
        uint8_t *block = cc__pool_take(bytes);
        CHECK(block != NULL);
        memset(block, mark, bytes);
        for (size_t i = 0; i < bytes; i += 4096) CHECK_EQ(block[i], mark);
        CHECK_EQ(block[bytes - 1], mark);
        cc__pool_give(block);
        if (turn % 50 == 0) cc__pool_trim((int64_t)turn, (int64_t)turn - 20);
    }
    return NULL;
}

static void test_threads(void) {
    pthread_t threads[THREADS];
    uint8_t marks[THREADS];
    for (int i = 0; i < THREADS; i++) {
        marks[i] = (uint8_t)(i + 1);
        CHECK_EQ(pthread_create(&threads[i], NULL, work, &marks[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    cc__pool_trim(1000, INT64_MAX);
    passed++;
}

int main(void) {
    test_a_block_comes_again();
    test_many_blocks();
    test_threads();
    printf("test_pool: %d passed, 0 failed\n", passed);
    return 0;
}
