/* What CC_AUTO stands for: the algorithm that a simple model of the network finds cheapest (Hockney
 * 1994: a message takes its latency and then a time for each byte), with four more terms for what
 * was seen on real machines. A choice must be the same on every member, so it is a pure function of the
 * call, the group's size and the epoch's record, in whole numbers. docs/algorithms.md has the counts
 * of steps and bytes that the formulas below are made of. */
#include "csrc/base/limits.h"
#include "csrc/plan/plan.h"

/* A data-centre network, for links that were not measured. */
#define LATENCY_NS 30000
#define BYTES_PER_S UINT64_C(1000000000)

#define BYTES_PER_S_MIN 1024
#define BYTES_MAX (UINT64_C(1) << 32) /* beyond, only what grows with the length matters */
#define LATENCY_NS_MAX UINT64_C(60000000000)

/* To start one more message costs its sender about a short latency of processor time, where members
 * share processors: with it m - 1 messages at once are dearer than two in a row. */
#define MESSAGE_NS 35000
/* A byte that is not reduced while it is in cache is read and written once more. */
#define REDUCE_PS 1000
/* Many senders at one receiver's door slow each other down: their bytes count for 5/4. */
#define CROWD(ns) ((ns) + (ns) / 4)
/* A chain passes a message on in pieces of about this length. */
#define PIECE_BYTES (UINT64_C(256) << 10)

typedef struct model {
    uint64_t size, rounds; /* members; log2 of them, rounded up */
    uint64_t latency, wire_ps;
    uint64_t bytes;
    int is_power;
} model;

static model model_of(const cc_network *network, uint32_t size, uint64_t bytes) {
    uint64_t speed = network->bytes_per_s ? network->bytes_per_s : BYTES_PER_S;
    if (speed < BYTES_PER_S_MIN) {
        speed = BYTES_PER_S_MIN;
    }
    model model = {.size = size,
                   .latency = network->latency_ns ? network->latency_ns : LATENCY_NS,
                   .wire_ps = UINT64_C(1000000000000) / speed,
                   .bytes = bytes < BYTES_MAX ? bytes : BYTES_MAX,
                   .is_power = (size & (size - 1)) == 0};
    if (model.latency > LATENCY_NS_MAX) {
        model.latency = LATENCY_NS_MAX;
    }
    while (UINT64_C(1) << model.rounds < size) {
        model.rounds++;
    }
    return model;
}

/* Messages one after the other, without their bytes. */
static uint64_t steps(const model *m, uint64_t count) {
    return count * (m->latency + MESSAGE_NS);
}

/* Messages sent at once. */
static uint64_t burst(const model *m, uint64_t count) {
    return m->latency + count * MESSAGE_NS;
}

static uint64_t wire(const model *m, uint64_t bytes) {
    return bytes * m->wire_ps / 1000;
}

static uint64_t reduction(uint64_t bytes) {
    return bytes * REDUCE_PS / 1000;
}

/* Bytes that are reduced as they come in: the slower of both counts. */
static uint64_t overlapped(const model *m, uint64_t sent, uint64_t reduced) {
    uint64_t network = wire(m, sent), memory = reduction(reduced);
    return network > memory ? network : memory;
}

/* What is not eager waits for the receivers to be ready. */
static uint64_t ready(const model *m, uint64_t message) {
    return message > CC_EAGER_BYTES ? m->latency : 0;
}

static uint64_t all_reduce(const model *m, cc_algorithm algorithm) {
    const uint64_t n = m->bytes, others = m->size - 1, share = n / m->size * others;
    const uint64_t log = m->rounds - (m->is_power ? 0 : 1), outside = m->is_power ? 0 : 2;
    switch (algorithm) {
    case CC_DIRECT: return burst(m, others) + ready(m, n) + others * (wire(m, n) + reduction(n));
    case CC_RECURSIVE_DOUBLING:
        return steps(m, log + outside) + ready(m, n) +
               (log + outside) * (wire(m, n) + reduction(n));
    case CC_HALVING_DOUBLING:
        return steps(m, 2 * log + outside) + m->latency + 2 * wire(m, share) + reduction(share) +
               outside * (wire(m, n) + reduction(n) / 2);
    default: return steps(m, 2 * others) + m->latency + overlapped(m, 2 * share, share);
    }
}

static uint64_t broadcast(const model *m, cc_algorithm algorithm) {
    const uint64_t n = m->bytes, others = m->size - 1, piece = n < PIECE_BYTES ? n : PIECE_BYTES;
    switch (algorithm) {
    case CC_DIRECT: return burst(m, others) + ready(m, n) + others * wire(m, n);
    case CC_TREE: return steps(m, m->rounds) + ready(m, n) + m->rounds * wire(m, n);
    default: return steps(m, others) + ready(m, n) + wire(m, n) + (others - 1) * wire(m, piece);
    }
}

static uint64_t reduce(const model *m, cc_algorithm algorithm) {
    const uint64_t n = m->bytes, others = m->size - 1;
    uint64_t folds = algorithm == CC_DIRECT ? others : algorithm == CC_TREE ? m->rounds : 0;
    return broadcast(m, algorithm) + folds * reduction(n);
}

/* `m->bytes` are those of all blocks. */
static uint64_t with_blocks(const model *m, cc_kind kind, cc_algorithm algorithm) {
    const uint64_t others = m->size - 1, block = m->bytes / m->size;
    const uint64_t reduced = kind == CC_REDUCE_SCATTER ? others * block : 0;
    if (algorithm == CC_DIRECT) {
        return burst(m, others) + ready(m, block) + CROWD(wire(m, others * block)) +
               reduction(reduced);
    }
    return steps(m, others) + m->latency + overlapped(m, others * block, reduced);
}

static uint64_t cost(const model *m, cc_kind kind, cc_algorithm algorithm) {
    switch (kind) {
    case CC_ALL_REDUCE: return all_reduce(m, algorithm);
    case CC_BROADCAST: return broadcast(m, algorithm);
    case CC_REDUCE: return reduce(m, algorithm);
    default: return with_blocks(m, kind, algorithm);
    }
}

cc_algorithm cc__plan_choose(const cc_network *network, cc_kind kind, uint32_t size,
                             uint64_t bytes) {
    static const cc_algorithm OTHERS[] = {CC_RECURSIVE_DOUBLING, CC_TREE, CC_HALVING_DOUBLING,
                                          CC_RING};
    if (size < 2) {
        return CC_DIRECT;
    }
    model model = model_of(network, size, bytes);
    cc_algorithm best = CC_DIRECT; /* of equals the simplest */
    uint64_t least = cost(&model, kind, CC_DIRECT);
    for (size_t i = 0; i < sizeof OTHERS / sizeof *OTHERS; i++) {
        if (!cc__plan_supports(kind, OTHERS[i])) {
            continue;
        }
        uint64_t other = cost(&model, kind, OTHERS[i]);
        if (other < least) {
            best = OTHERS[i];
            least = other;
        }
    }
    return best;
}
