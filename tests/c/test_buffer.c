/* Goal: an input in place comes back bit by bit, whatever was overwritten, and only that is copied
 * which has to be.
 * Method: random overwrites of buffers of odd lengths, each announced first, as an operation does
 * it; then the restored buffer against a copy of the whole. */
#include "csrc/op/buffer.h"
#include "tests/c/check.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int passed;
static uint64_t state = 424242; /* the seed of all chance here */

static uint64_t draw(void) {
    uint64_t z = (state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static uint8_t *filled(uint64_t bytes) {
    uint8_t *buffer = malloc(bytes);
    CHECK(buffer != NULL);
    for (uint64_t i = 0; i < bytes; i++) buffer[i] = (uint8_t)draw();
    return buffer;
}

static void test_random_overwrites(void) {
    for (int history = 0; history < 3000; history++) {
        uint64_t bytes = 1 + draw() % 3000;
        uint32_t cell = 64u * (1 + (uint32_t)(draw() % 20));
        uint8_t *buffer = filled(bytes), *whole = malloc(bytes);
        CHECK(whole != NULL);
        memcpy(whole, buffer, bytes);
        cc__saved saved;
        CHECK_EQ(cc__saved_open(&saved, buffer, bytes, cell), CC_OK);
        int writes = (int)(draw() % 12);
        for (int i = 0; i < writes; i++) {
            uint64_t offset = draw() % bytes, length = draw() % (bytes - offset + 1);
            cc__saved_keep(&saved, offset, length);
            for (uint64_t at = offset; at < offset + length; at++) buffer[at] = (uint8_t)draw();
        }
        cc__saved_restore(&saved);
        CHECK(memcmp(buffer, whole, bytes) == 0);
        cc__saved_restore(&saved); /* twice does no harm */
        CHECK(memcmp(buffer, whole, bytes) == 0);
        cc__saved_close(&saved);
        CHECK(saved.buffer == NULL && saved.copy == NULL && saved.kept == NULL);
        cc__saved_close(&saved);
        free(buffer);
        free(whole);
    }
    passed++;
}

/* What was never announced is not touched: it may be the caller's next input already. */
static void test_only_what_was_announced_is_put_back(void) {
    uint8_t *buffer = filled(1000);
    uint8_t first = buffer[0], last = buffer[999];
    cc__saved saved;
    CHECK_EQ(cc__saved_open(&saved, buffer, 1000, 64), CC_OK);
    cc__saved_keep(&saved, 0, 1);
    cc__saved_keep(&saved, 999, 1);
    memset(buffer, 0x11, 1000);
    cc__saved_restore(&saved);
    CHECK_EQ(buffer[0], first);
    CHECK_EQ(buffer[999], last);
    for (int i = 64; i < 960; i++) CHECK_EQ(buffer[i], 0x11); /* whole cells in between */
    cc__saved_close(&saved);
    free(buffer);
    passed++;
}

/* The first content counts: a second overwrite of a cell saves nothing. */
static void test_the_first_content_counts(void) {
    uint8_t buffer[128] = {1};
    cc__saved saved;
    CHECK_EQ(cc__saved_open(&saved, buffer, sizeof buffer, 64), CC_OK);
    for (int value = 2; value < 9; value++) {
        cc__saved_keep(&saved, 0, 64);
        buffer[0] = (uint8_t)value;
    }
    cc__saved_restore(&saved);
    CHECK_EQ(buffer[0], 1);
    cc__saved_close(&saved);
    passed++;
}

static void test_nothing_to_save(void) {
    cc__saved none = {0};
    cc__saved_keep(&none, 0, 100);
    cc__saved_restore(&none);
    cc__saved_close(&none);
    uint8_t byte = 7;
    cc__saved saved;
    CHECK_EQ(cc__saved_open(&saved, &byte, 1, 64), CC_OK);
    cc__saved_keep(&saved, 1, 0); /* an empty range, at the very end */
    cc__saved_keep(&saved, 0, 0);
    byte = 8;
    cc__saved_restore(&saved);
    CHECK_EQ(byte, 8);
    cc__saved_close(&saved);
    passed++;
}

int main(void) {
    test_random_overwrites();
    test_only_what_was_announced_is_put_back();
    test_the_first_content_counts();
    test_nothing_to_save();
    printf("test_buffer: %d passed, 0 failed\n", passed);
    return 0;
}
