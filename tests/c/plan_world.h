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

/* ---- geometry ------------------------------------------------------------------------------- */

/* Fills in where a member's blocks lie, and returns the element at which its own begins. */
static uint64_t place_blocks(const world *w, member *m, uint32_t me) {
    uint64_t in = 0, out = 0, own = 0;
    for (uint32_t b = 0; b < w->input.size; b++) {
        uint64_t given = length_of(w, me, b), received = length_of(w, b, me);
        in += w->gaps[b];
        out += w->gaps[b];
        own = b == me ? in : own;
        m->in_blocks[b] = (cc__block){in * w->input.element_bytes, given * w->input.element_bytes};
        m->out_blocks[b] =
            (cc__block){out * w->input.element_bytes, received * w->input.element_bytes};
        in += given;
        out += received;
    }
    return has_blocks(w->input.kind) ? own : 0;
}

static uint64_t whole(const world *w, const cc__block *blocks) {
    const cc__block *last = &blocks[w->input.size - 1];
    return (last->offset + last->bytes) / w->input.element_bytes;
}

static uint64_t in_elements(const world *w, const member *m, uint32_t me) {
    switch (w->input.kind) {
    case CC_ALL_GATHER:
    case CC_GATHER: return length_of(w, 0, me);
    case CC_SCATTER: return me == w->input.root ? whole(w, m->in_blocks) : 0;
    case CC_REDUCE_SCATTER:
    case CC_ALL_TO_ALL: return whole(w, m->in_blocks);
    case CC_BROADCAST: return me == w->input.root ? w->input.count : 0;
    default: return w->input.count;
    }
}

static uint64_t out_elements(const world *w, const member *m, uint32_t me) {
    switch (w->input.kind) {
    case CC_ALL_GATHER: return whole(w, m->in_blocks);
    case CC_GATHER: return me == w->input.root ? whole(w, m->in_blocks) : 0;
    case CC_SCATTER:
    case CC_REDUCE_SCATTER: return length_of(w, 0, me);
    case CC_ALL_TO_ALL: return whole(w, m->out_blocks);
    case CC_REDUCE: return me == w->input.root ? w->input.count : 0;
    default: return w->input.count;
    }
}

/* ---- building a world, with the checks that need no execution -------------------------------- */

static void match_messages(world *w) {
    uint32_t sends = 0, receipts = 0, longest = 0, most = 0;
    for (uint32_t a = 0; a < w->input.size; a++) {
        uint32_t next[MEMBERS] = {0}, heard[MEMBERS] = {0};
        for (uint32_t i = 0; i < w->members[a].plan.n_moves; i++) {
            const cc__move *move = &w->members[a].plan.moves[i];
            CHECK(move->bytes > 0 && move->after < (int32_t)i);
            CHECK(move->after < 0 || w->members[a].plan.moves[move->after].bytes == move->bytes);
            if (receives(move)) {
                CHECK_EQ(move->slot, heard[move->peer]++);
                receipts++;
            }
            if (move->kind != CC__SEND) {
                continue;
            }
            CHECK(move->peer < w->input.size && move->peer != a);
            CHECK_EQ(move->slot, next[move->peer]++);
            most = next[move->peer] > most ? next[move->peer] : most;
            longest = move->bytes > longest ? (uint32_t)move->bytes : longest;
            sends++;
            const cc__plan *other = &w->members[move->peer].plan;
            uint32_t matches = 0;
            for (uint32_t k = 0; k < other->n_moves; k++) {
                const cc__move *candidate = &other->moves[k];
                if (receives(candidate) && candidate->peer == a && candidate->slot == move->slot) {
                    CHECK_EQ(candidate->bytes, move->bytes);
                    w->members[a].moves[i].match = k;
                    matches++;
                }
            }
            CHECK_EQ(matches, 1);
        }
    }
    CHECK_EQ(sends, receipts);
    for (uint32_t a = 0; a < w->input.size; a++) {
        CHECK_EQ(w->members[a].plan.eager, w->members[0].plan.eager);
    }
    CHECK(!w->members[0].plan.eager || (most <= 1 && longest <= CC_EAGER_BYTES));
    if (!has_blocks(w->input.kind) && w->input.algorithm != CC_RING &&
        w->input.algorithm != CC_HALVING_DOUBLING) {
        CHECK(w->members[0].plan.eager || most > 1 || longest > CC_EAGER_BYTES);
    }
}

/* The value of one input element. */
static uint64_t input_of(uint32_t member, uint64_t index) {
    uint64_t mixed = (member + 1) * UINT64_C(0xd1342543de82ef95) + index * 0x61c88647;
    return (mixed ^ mixed >> 31) & mask;
}

static void expect_reads(world *w, member *m, cc__place place, uint64_t length) {
    for (uint64_t i = 0; place.area == CC__IN && i < length; i++) {
        CHECK(place.offset / w->input.element_bytes + i < m->elements[CC__IN]);
        m->readers[place.offset / w->input.element_bytes + i]++;
    }
}

/* The memory of one member: IN, OUT (in place, the smaller one lies in the larger) and STAGE. */
static void lay_out(world *w, member *m, uint32_t me) {
    uint64_t own = place_blocks(w, m, me);
    m->elements[CC__IN] = in_elements(w, m, me);
    m->elements[CC__OUT] = out_elements(w, m, me);
    m->elements[CC__STAGE] = m->plan.stage_bytes / w->input.element_bytes;
    for (int area = 0; area < 3; area++) {
        m->memory[area] = allocate(m->elements[area], sizeof(uint64_t));
        m->area[area] = m->memory[area];
    }
    int aliased = w->in_place && m->elements[CC__IN] > 0 && m->elements[CC__OUT] > 0;
    if (aliased && m->elements[CC__OUT] >= m->elements[CC__IN]) {
        m->area[CC__IN] = m->area[CC__OUT] + own;
        m->shift = -(int64_t)own;
    } else if (aliased) {
        m->area[CC__OUT] = m->area[CC__IN] + own;
        m->shift = (int64_t)own;
    } else {
        m->shift = INT64_MIN / 2;
    }
    for (int area = 2; area >= 0; area--) {
        for (uint64_t i = 0; i < m->elements[area]; i++) {
            m->area[area][i] = area == CC__IN ? input_of(me, i) : POISON;
        }
    }
    m->before = allocate(m->elements[CC__OUT], sizeof *m->before);
    memcpy(m->before, m->area[CC__OUT], m->elements[CC__OUT] * sizeof *m->before);
}

static void prepare(world *w) {
    uint32_t all = 0;
    for (uint32_t a = 0; a < w->input.size; a++) {
        member *m = &w->members[a];
        w->input.me = a;
        place_blocks(w, m, a);
        w->input.blocks = m->in_blocks;
        w->input.out_blocks = m->out_blocks;
        CHECK_EQ(cc__plan_build(&w->input, &m->plan), CC_OK);
        CHECK_EQ(m->plan.algorithm, w->input.algorithm);
        lay_out(w, m, a);
        m->readers = allocate(m->elements[CC__IN], sizeof *m->readers);
        m->moves = allocate(m->plan.n_moves, sizeof *m->moves);
        for (uint32_t i = 0; i < m->plan.n_moves; i++) {
            const cc__move *move = &m->plan.moves[i];
            uint64_t length = move->bytes / w->input.element_bytes;
            m->moves[i].segments = (uint32_t)((length + w->segment - 1) / w->segment);
            m->moves[i].is_done = allocate(m->moves[i].segments, 1);
            m->moves[i].payload = move->kind == CC__SEND ? allocate(length, 8) : NULL;
            all += m->moves[i].segments;
            if (move->kind != CC__PLACE) {
                expect_reads(w, m, move->src, length);
            }
            if (move->kind == CC__LOCAL) {
                expect_reads(w, m, move->src2, length);
            }
        }
    }
    match_messages(w);
    w->items = allocate(2 * (size_t)all, sizeof *w->items);
    for (uint32_t a = 0; a < w->input.size; a++) {
        for (uint32_t i = 0; i < w->members[a].plan.n_moves; i++) {
            for (uint32_t s = 0; s < w->members[a].moves[i].segments; s++) {
                if (!receives(&w->members[a].plan.moves[i])) {
                    add_item(w, (item){WORK, a, i, s});
                }
            }
        }
    }
}

static void discard(world *w) {
    for (uint32_t a = 0; a < w->input.size; a++) {
        member *m = &w->members[a];
        for (uint32_t i = 0; i < m->plan.n_moves; i++) {
            free(m->moves[i].is_done);
            free(m->moves[i].payload);
        }
        for (int area = 0; area < 3; area++) {
            free(m->memory[area]);
        }
        free(m->before);
        free(m->readers);
        free(m->moves);
        cc__plan_free(&m->plan);
    }
    free(w->items);
}

#endif
