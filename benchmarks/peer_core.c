/* A rank of collectives without Python: the public C header and nothing else, so that the difference
 * to the ranks in Python is what the binding costs.
 *
 * There is no coordinator. The driver hands every rank the others' addresses and each installs the
 * same first epoch, which is all that a coordinator does for a group that nobody leaves. */
#include "benchmarks/peer.h"
#include "csrc/collectives.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define GROUP 1
#define READY_S 60
#define WAIT_MS 1000

static cc_context *context;
static int rank, ranks;

static void need(cc_status status, const char *what, const char *message) {
    if (status != CC_OK) peer_fail(what, message && *message ? message : cc_status_text(status));
}

static cc_peer_id id_of(int of_rank) {
    cc_peer_id id = {{'b', 'e', 'n', 'c', 'h'}};
    id.bytes[14] = (uint8_t)(of_rank >> 8);
    id.bytes[15] = (uint8_t)of_rank;
    return id;
}

/* ---- the group ---------------------------------------------------------------------------- */

static void open_context(char *address) {
    cc_options options;
    char message[CC_MESSAGE_MAX] = "";
    cc_options_default(&options);
    options.id = id_of(rank);
    need(cc_context_open(&options, &context, message), "opening a context", message);
    cc_context_address(context, address);
}

static void wait_ready(void) {
    cc_event *event = malloc(sizeof *event);
    if (!event) peer_fail("waiting for the others", "out of memory");
    for (time_t end = time(NULL) + READY_S;;) {
        cc_status status = cc_next_event(context, event);
        if (status == CC_OK && event->kind == CC_EVENT_READY) break;
        if (status == CC_OK && event->kind == CC_EVENT_SEALED)
            peer_fail("the first epoch was sealed", event->report.detail);
        if (time(NULL) >= end) peer_fail("waiting for the others", "they are not ready");
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    free(event);
}

/* words: the run's token in hexadecimal, then every rank's address. */
static void start(char **words, int count) {
    uint8_t token[16];
    if (count != ranks + 1 || strlen(words[0]) != 2 * sizeof token)
        peer_fail("start", "wants a token of 32 hexadecimal digits and an address for each rank");
    for (size_t i = 0; i < sizeof token; i++) {
        char digits[3] = {words[0][2 * i], words[0][2 * i + 1], 0};
        token[i] = (uint8_t)strtoul(digits, NULL, 16);
    }
    cc_context_set_token(context, token);
    cc_member *members = calloc((size_t)ranks, sizeof *members);
    if (!members) peer_fail("the members", "out of memory");
    for (int i = 0; i < ranks; i++) {
        members[i] = (cc_member){.id = id_of(i), .rank = (uint32_t)i, .serial = (uint32_t)i + 1};
        members[i].host = 1;
        snprintf(members[i].address, sizeof members[i].address, "%s", words[i + 1]);
    }
    cc_epoch epoch = {.group = GROUP,
                      .epoch = 1,
                      .cause = CC_CAUSE_FORMED,
                      .world = (uint32_t)ranks,
                      .min_size = 1,
                      .detail = "",
                      .members = members,
                      .n_members = (uint32_t)ranks};
    need(cc_install(context, &epoch), "installing the epoch", NULL);
    free(members);
    wait_ready();
}

/* ---- operations --------------------------------------------------------------------------- */

static const cc_kind kinds[OPERATIONS] = {
    [ALL_REDUCE] = CC_ALL_REDUCE, [BROADCAST] = CC_BROADCAST,
    [ALL_GATHER] = CC_ALL_GATHER, [BARRIER] = CC_BARRIER,
    [REDUCE] = CC_REDUCE,         [GATHER] = CC_GATHER,
    [SCATTER] = CC_SCATTER,       [REDUCE_SCATTER] = CC_REDUCE_SCATTER,
    [ALL_TO_ALL] = CC_ALL_TO_ALL,
};

static const char *name_of(cc_algorithm algorithm) {
    switch (algorithm) {
    case CC_AUTO: return "auto";
    case CC_RING: return "ring";
    case CC_RECURSIVE_DOUBLING: return "recursive_doubling";
    case CC_DIRECT: return "direct";
    case CC_HALVING_DOUBLING: return "halving_doubling";
    case CC_TREE: return "tree";
    }
    return "unknown";
}

static void post(const cc_request *request, trial *trial) {
    char message[CC_MESSAGE_MAX] = "";
    cc_work *work;
    cc_status status;
    need(cc_post(context, GROUP, request, &work, message), "posting", message);
    while ((status = cc_wait(work, WAIT_MS)) == CC_PENDING) continue;
    if (status != CC_OK || (trial && trial->verifying)) {
        cc_info *info = malloc(sizeof *info);
        if (!info) peer_fail("the outcome", "out of memory");
        cc_work_info(work, info);
        need(status, "an operation failed", info->message);
        if (trial) trial->notes = name_of(info->algorithm);
        free(info);
    }
    cc_work_free(work);
}

static void barrier(void) {
    post(&(cc_request){.kind = CC_BARRIER, .timeout_ms = -1}, NULL);
}

static void there_and_back(const trial *t) {
    cc_request request = {.dtype = CC_FLOAT32, .count = t->block, .timeout_ms = -1};
    request.root = (uint32_t)(1 - rank);
    for (int turn = 0; turn < 2; turn++) {
        int sends = turn == rank;
        request.kind = sends ? CC_SEND : CC_RECEIVE;
        request.in = sends ? t->in : NULL;
        request.out = sends ? NULL : t->out;
        post(&request, NULL);
    }
}

static void run(trial *t) {
    if (t->op == SEND_RECV) {
        there_and_back(t);
        return;
    }
    cc_request request = {.kind = kinds[t->op],
                          .root = PEER_ROOT,
                          .world = (uint32_t)ranks,
                          .flags = t->in_place ? CC_PRESERVE : 0,
                          .in = t->in,
                          .out = t->out,
                          .count = t->block,
                          .timeout_ms = -1};
    if (t->op != BARRIER) request.dtype = CC_FLOAT32;
    if (t->op == ALL_REDUCE || t->op == REDUCE || t->op == REDUCE_SCATTER) request.op = CC_SUM;
    if (t->op == ALL_REDUCE || t->op == BROADCAST || t->op == REDUCE) request.world = 0;
    post(&request, t);
}

int main(int argc, char **argv) {
    if (argc != 4) peer_fail("usage", "bench_core SOCKET RANK RANKS");
    char address[CC_ADDRESS_MAX];
    rank = atoi(argv[2]);
    ranks = atoi(argv[3]);
    open_context(address);
    library library = {rank, ranks, address, start, barrier, run};
    peer_serve(argv[1], &library);
    barrier();
    cc_context_close(context, 0);
    cc_context_free(context);
    return 0;
}
