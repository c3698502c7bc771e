/* A world in which plans are carried out, for test_plan.c: the members of one operation, their
 * memory, and the messages between them. Each step takes one segment of one move, in an order that
 * a strategy and the random numbers choose. What no plan may cause is checked as it happens: a read
 * of memory that nothing was written to, a write over input that is still to be read, a payload
 * that comes too early for a move without a holding area, messages that do not pair, a deadlock. */
#ifndef CC_TESTS_PLAN_WORLD_H
#define CC_TESTS_PLAN_WORLD_H

#include "csrc/base/limits.h"
#include "csrc/plan/plan.h"
#include "tests/c/check.h"

#include <string.h>

#define MEMBERS 17
#define POISON UINT64_C(0xdead5eedbad0c0de)

static uint64_t seed = 20240229;

static uint64_t random_bits(void) { /* xorshift64* */
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return seed * UINT64_C(0x2545f4914f6cdd1d);
}

static uint32_t random_below(uint32_t bound) {
    return (uint32_t)((random_bits() >> 32) % bound);
}

/* ---- the operators ------------------------------------------------------------------------- */

enum { OP_SUM, OP_HASH, OPS };
static int op;
static uint64_t mask; /* of the element's width */

static uint64_t combine(uint64_t left, uint64_t right) {
    if (op == OP_SUM) {
        return (left + right) & mask;
    }
    uint64_t mixed = (left * UINT64_C(0x9e3779b97f4a7c15) + 1) ^ (right + (right << 7) + 3);
    return (mixed ^ mixed >> 29) & mask;
}

static uint64_t finish(uint64_t value) { /* changes every value: forgotten or repeated, it shows */
    return (3 * value + 1) & mask;
}

/* ---- the world ----------------------------------------------------------------------------- */

enum strategy { RANDOM, SENDS_LATE, SENDS_EARLY, ONE_SLOW, STRATEGIES };

/* A thing that can be done: a send or local segment, a payload under way, or a payload on hold. */
typedef struct item {
    enum { WORK, UNDER_WAY, HELD } kind;
    uint32_t member, move, segment; /* UNDER_WAY: of the sender */
} item;

typedef struct progress {
    uint32_t match;    /* SEND: the peer's move that receives it */
    uint32_t segments; /* of this move */
    uint32_t done, prefix;
    uint8_t *is_done;
    uint64_t *payload; /* SEND: what was captured */
} progress;

typedef struct member {
    cc__plan plan;
    uint64_t *area[3], elements[3];
    uint64_t *memory[3]; /* what was allocated */
    int64_t shift;       /* in place: element i of OUT is element i + shift of IN */
    uint64_t *before;    /* what OUT held at the start */
    uint32_t *readers;   /* of each element of IN: moves that have yet to read it */
    progress *moves;
    cc__block in_blocks[MEMBERS], out_blocks[MEMBERS];
} member;

typedef struct world {
    cc__plan_input input;
    member members[MEMBERS];
    int in_place;
    uint64_t lengths[MEMBERS][MEMBERS]; /* elements of the block that a gives to b; of kinds in
                                           which all know all blocks the first row counts */
    uint64_t gaps[MEMBERS];             /* before each block: ranks without a member */
    uint64_t segment;                   /* elements */
    item *items;
    uint32_t n_items;
} world;

static int has_blocks(cc_kind kind) {
    return kind == CC_ALL_GATHER || kind == CC_GATHER || kind == CC_SCATTER ||
           kind == CC_REDUCE_SCATTER || kind == CC_ALL_TO_ALL;
}

/* Elements of the block that `from` gives to `to`; with one list for all, of the block of `to`. */
static uint64_t length_of(const world *w, uint32_t from, uint32_t to) {
    return w->lengths[w->input.kind == CC_ALL_TO_ALL ? from : 0][to];
}

static void *allocate(size_t count, size_t bytes) {
    void *memory = calloc(count + 1, bytes);
    CHECK(memory != NULL);
    return memory;
}

static int receives(const cc__move *move) {
    return move->kind == CC__PLACE || move->kind == CC__REDUCE;
}

static uint64_t *element(world *w, member *m, cc__place place, uint64_t index) {
    CHECK(place.offset % w->input.element_bytes == 0);
    uint64_t i = place.offset / w->input.element_bytes + index;
    CHECK(i < m->elements[place.area]);
    return &m->area[place.area][i];
}

static uint64_t read_element(world *w, member *m, cc__place place, uint64_t index) {
    uint64_t value = *element(w, m, place, index);
    CHECK(value != POISON);
    if (place.area == CC__IN) {
        CHECK(m->readers[place.offset / w->input.element_bytes + index]-- > 0);
    }
    return value;
}

static void write_element(world *w, member *m, cc__place place, uint64_t index, uint64_t value) {
    int64_t i = (int64_t)(place.offset / w->input.element_bytes + index) + m->shift;
    CHECK(place.area != CC__IN);
    if (w->in_place && place.area == CC__OUT && i >= 0 && i < (int64_t)m->elements[CC__IN]) {
        CHECK_EQ(m->readers[i], 0);
    }
    *element(w, m, place, index) = value;
}

/* May bytes up to the end of this segment be touched yet? */
static int is_ready(const member *m, uint32_t move, uint32_t segment) {
    const cc__move *step = &m->plan.moves[move];
    if (step->after >= 0 && m->moves[step->after].prefix <= segment) {
        return 0;
    }
    for (uint32_t i = 0; (step->flags & CC__MOVE_FENCE) && i < move; i++) {
        if (m->moves[i].done < m->moves[i].segments) {
            return 0;
        }
    }
    return 1;
}

static void mark_done(member *m, uint32_t move, uint32_t segment) {
    progress *p = &m->moves[move];
    CHECK(!p->is_done[segment]);
    p->is_done[segment] = 1;
    p->done++;
    while (p->prefix < p->segments && p->is_done[p->prefix]) {
        p->prefix++;
    }
}

static void add_item(world *w, item added) {
    w->items[w->n_items++] = added;
}

static uint64_t segment_end(const world *w, const cc__move *move, uint32_t segment) {
    uint64_t end = (segment + 1) * w->segment, count = move->bytes / w->input.element_bytes;
    return end < count ? end : count;
}

/* Uses a payload: `from` is where it is, the hold area or (NULL) `payload`. */
static void apply(world *w, member *m, uint32_t index, uint32_t segment, const uint64_t *payload) {
    const cc__move *move = &m->plan.moves[index];
    for (uint64_t i = segment * w->segment; i < segment_end(w, move, segment); i++) {
        uint64_t value = payload ? payload[i] : read_element(w, m, move->hold, i);
        if (move->kind == CC__REDUCE) {
            uint64_t local = read_element(w, m, move->src, i);
            value = move->flags & CC__MOVE_INCOMING_FIRST ? combine(value, local)
                                                          : combine(local, value);
            value = move->flags & CC__MOVE_FINISH ? finish(value) : value;
        }
        write_element(w, m, move->dst, i, value);
    }
    mark_done(m, index, segment);
}

static void arrive(world *w, const item *sent) {
    const cc__move *send = &w->members[sent->member].plan.moves[sent->move];
    const progress *p = &w->members[sent->member].moves[sent->move];
    member *m = &w->members[send->peer];
    const cc__move *move = &m->plan.moves[p->match];
    if (is_ready(m, p->match, sent->segment)) {
        apply(w, m, p->match, sent->segment, p->payload);
        return;
    }
    CHECK(move->after >= 0 || move->flags & CC__MOVE_FENCE);
    CHECK_EQ(move->hold.area, CC__STAGE);
    for (uint64_t i = sent->segment * w->segment; i < segment_end(w, move, sent->segment); i++) {
        write_element(w, m, move->hold, i, p->payload[i]);
    }
    add_item(w, (item){HELD, send->peer, p->match, sent->segment});
}

static void work(world *w, const item *now) {
    member *m = &w->members[now->member];
    const cc__move *move = &m->plan.moves[now->move];
    int onto_itself =
        move->kind == CC__COPY && element(w, m, move->src, 0) == element(w, m, move->dst, 0);
    for (uint64_t i = now->segment * w->segment; i < segment_end(w, move, now->segment); i++) {
        uint64_t value = read_element(w, m, move->src, i);
        if (move->kind == CC__SEND) {
            m->moves[now->move].payload[i] = value;
            continue;
        }
        if (move->kind == CC__LOCAL) {
            value = combine(value, read_element(w, m, move->src2, i));
        }
        value = move->flags & CC__MOVE_FINISH ? finish(value) : value;
        if (!onto_itself || move->flags & CC__MOVE_FINISH) {
            write_element(w, m, move->dst, i, value);
        }
    }
    mark_done(m, now->move, now->segment);
    if (move->kind == CC__SEND) {
        add_item(w, (item){UNDER_WAY, now->member, now->move, now->segment});
    }
}

/* What comes first (0) and what only when nothing else can be done (1). */
static int priority(const world *w, const item *i, enum strategy strategy, uint32_t slow) {
    const cc__move *move = &w->members[i->member].plan.moves[i->move];
    int is_send = i->kind == WORK && move->kind == CC__SEND;
    switch (strategy) {
    case SENDS_LATE: return is_send;
    case SENDS_EARLY: return !is_send;
    case ONE_SLOW: return (i->kind == UNDER_WAY ? move->peer : i->member) == slow;
    default: return 0;
    }
}

static void run(world *w, enum strategy strategy) {
    uint32_t slow = random_below(w->input.size);
    while (w->n_items > 0) {
        uint32_t start = random_below(w->n_items), found = UINT32_MAX;
        for (int class = 0; class < 2 && found == UINT32_MAX; class ++) {
            for (uint32_t i = 0; i < w->n_items && found == UINT32_MAX; i++) {
                uint32_t at = (start + i) % w->n_items;
                const item *it = &w->items[at];
                if (priority(w, it, strategy, slow) == class &&
                    (it->kind == UNDER_WAY ||
                     is_ready(&w->members[it->member], it->move, it->segment))) {
                    found = at;
                }
            }
        }
        CHECK(found != UINT32_MAX); /* else nothing can ever move again: a deadlock */
        item now = w->items[found];
        w->items[found] = w->items[--w->n_items];
        if (now.kind == UNDER_WAY) {
            arrive(w, &now);
        } else if (now.kind == HELD) {
            apply(w, &w->members[now.member], now.move, now.segment, NULL);
        } else {
            work(w, &now);
        }
    }
}

#endif
