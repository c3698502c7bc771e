#include "csrc/base/pool.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#define SLOTS 4
#define BYTES_MAX ((size_t)1 << 60) /* no request is longer: sums of lengths cannot overflow */
#define ALIGNMENT 64u
#define KEPT_MIN (128u << 10) /* shorter ones come fast from malloc */
#define HUGE_PAGE (2u << 20)  /* from there on, in pages of this size where the system has them */
#define SLACK (1u << 20)      /* a block may be larger than asked for by this, */
#define SLACK_FACTOR 2        /* or so many times as large */

typedef struct block {
    size_t capacity; /* of what follows */
    int64_t given_at;
} block;

static _Atomic(block *) slots[SLOTS];
static _Atomic(unsigned) next_slot;
static _Atomic(int64_t) clock_now;

static block *block_of(void *memory) {
    return (block *)(void *)((uint8_t *)memory - ALIGNMENT);
}

static void *new_block(size_t bytes) {
    size_t unit = bytes >= HUGE_PAGE ? HUGE_PAGE : ALIGNMENT;
    if (bytes > BYTES_MAX) return NULL;
    size_t whole = (bytes + ALIGNMENT + unit - 1) / unit * unit;
    block *made = aligned_alloc(unit, whole);
    if (made == NULL) return NULL;
#ifdef MADV_HUGEPAGE
    if (unit == HUGE_PAGE) madvise(made, whole, MADV_HUGEPAGE);
#endif
    *made = (block){whole - ALIGNMENT, 0};
    return (uint8_t *)made + ALIGNMENT;
}

static void put(block *kept) {
    for (int i = 0; i < SLOTS; i++) {
        block *nothing = NULL;
        if (atomic_compare_exchange_strong(&slots[i], &nothing, kept)) return;
    }
    free(atomic_exchange(&slots[atomic_fetch_add(&next_slot, 1) % SLOTS], kept));
}

void *cc__pool_take(size_t bytes) {
    for (int i = 0; i < SLOTS && bytes >= KEPT_MIN; i++) {
        block *found = atomic_exchange(&slots[i], NULL);
        if (found == NULL) continue;
        size_t most = bytes < SLACK ? bytes + SLACK : bytes * SLACK_FACTOR;
        if (found->capacity >= bytes && found->capacity <= most)
            return (uint8_t *)found + ALIGNMENT;
        put(found);
    }
    return new_block(bytes);
}

void cc__pool_give(void *memory) {
    if (memory == NULL) return;
    block *given = block_of(memory);
    if (given->capacity < KEPT_MIN) {
        free(given);
        return;
    }
    given->given_at = atomic_load(&clock_now);
    put(given);
}

void cc__pool_trim(int64_t now, int64_t then) {
    atomic_store(&clock_now, now);
    for (int i = 0; i < SLOTS; i++) {
        block *found = atomic_exchange(&slots[i], NULL);
        if (found == NULL) continue;
        if (found->given_at < then)
            free(found);
        else
            put(found);
    }
}
