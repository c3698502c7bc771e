/* Goal: whatever a member sends as a report or a record, no peer crashes, installs what contradicts
 * its own epoch, or hands on what is no report.
 * Method: three contexts in a simulated world; one of them lies: its frames are put on its links by
 * hand. A table of lies says what becomes of each; then random ones. */
#include "csrc/group/context.h"
#include "tests/c/check.h"
#include "transport/sim.h"

#include <string.h>

#define GROUP 7
#define PEERS 3
#define HONEST 0 /* who is lied to */
#define LIAR 1

static int passed;
static uint64_t state = 20250314; /* the seed of all chance here */

static uint64_t draw(void) {
    uint64_t z = (state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

typedef struct world {
    cc_sim *sim;
    cc_context *peers[PEERS];
    cc_member members[PEERS];
} world;

static void run_ms(world *world, int64_t ms) {
    int64_t end = cc_sim_now_ns(world->sim) + ms * CC__MS;
    for (int64_t wake = 0; wake <= end;) {
        wake = INT64_MAX;
        for (int i = 0; i < PEERS; i++) {
            int64_t due = cc_step(world->peers[i]);
            if (due < wake) wake = due;
        }
        if (cc_sim_next_ns(world->sim) < wake) wake = cc_sim_next_ns(world->sim);
        cc_sim_advance(world->sim, wake < end ? wake : end);
    }
}

static cc__group *group_of(const world *world, int peer) {
    return cc__context_group(world->peers[peer], GROUP, false);
}

/* Three members of epoch 1, who have all installed it. */
static world open_world(uint64_t seed) {
    world world = {.sim = cc_sim_open(seed)};
    static const uint8_t token[16] = {1, 2, 3};
    for (int i = 0; i < PEERS; i++) {
        cc_options options;
        cc_options_default(&options);
        options.transport = "sim";
        options.manual = 1;
        options.world = world.sim;
        options.streams = 1;
        options.id.bytes[0] = (uint8_t)(i + 1);
        CHECK_EQ(cc_context_open(&options, &world.peers[i], NULL), CC_OK);
        cc_context_set_token(world.peers[i], token);
        cc_member *member = &world.members[i];
        *member = (cc_member){.id = options.id, .rank = (uint32_t)i, .serial = (uint32_t)i + 1};
        cc_context_address(world.peers[i], member->address);
    }
    const cc_epoch first = {.group = GROUP,
                            .epoch = 1,
                            .cause = CC_CAUSE_FORMED,
                            .world = PEERS,
                            .min_size = 1,
                            .members = world.members,
                            .n_members = PEERS};
    for (int i = 0; i < PEERS; i++) CHECK_EQ(cc_install(world.peers[i], &first), CC_OK);
    run_ms(&world, 5);
    for (int i = 0; i < PEERS; i++) CHECK_EQ(group_of(&world, i)->n_installed, PEERS);
    return world;
}

static void close_world(world *world) {
    for (int i = 0; i < PEERS; i++) cc_context_free(world->peers[i]);
    cc_sim_close(world->sim);
}

static void lie(world *world, uint8_t type, uint64_t epoch, const uint8_t *payload,
                uint32_t length) {
    cc__frame frame = {.type = type, .group = GROUP, .epoch = epoch, .length = length};
    cc__links *links = &world->peers[LIAR]->links;
    cc__link *link = cc__links_find(links, &world->members[HONEST].id);
    CHECK(link != NULL);
    cc__links_send(links, link, &frame, payload);
    run_ms(world, 1);
}

/* Takes the honest peer's events; returns how many are reports of the liar. */
static int carried(world *world, cc_report *last) {
    static cc_event event;
    int count = 0;
    while (cc_next_event(world->peers[HONEST], &event) == CC_OK) {
        if (event.kind != CC_EVENT_SEALED || event.peer.bytes[0] != LIAR + 1) continue;
        *last = event.report;
        count++;
    }
    return count;
}

static bool is_accused(const world *world) {
    const cc_report *report = &group_of(world, HONEST)->report;
    for (uint32_t i = 0; i < report->n_evidence; i++)
        if (report->evidence[i].kind == CC_EVIDENCE_PROTOCOL) return true;
    return false;
}

/* ---- records -------------------------------------------------------------------------------- */

/* The third member is lost; nothing was ever posted. */
static cc__delta truth(void) {
    return (cc__delta){
        .cause = CC_CAUSE_LOST, .lost = {{3}}, .lost_rank = 2, .size = PEERS, .stay = {0x03}};
}

typedef enum fate { INSTALLED, IGNORED, ACCUSED } fate;

static fate told(uint64_t epoch, const cc__delta *delta, uint64_t posted, bool sealed) {
    world world = open_world(draw());
    if (posted > 0) {
        cc_request barrier = {.kind = CC_BARRIER, .timeout_ms = -1};
        cc_work *work;
        for (uint64_t i = 0; i < posted; i++) {
            CHECK_EQ(cc_post(world.peers[HONEST], GROUP, &barrier, &work, NULL), CC_OK);
            cc_work_free(work);
        }
    }
    if (sealed) cc_seal(world.peers[HONEST], GROUP, 1);
    run_ms(&world, 1);
    uint8_t payload[CC__EPOCH_BYTES_MAX];
    uint32_t length = cc__delta_pack(delta, payload);
    lie(&world, CC__EPOCH, epoch, payload, length);
    const cc__group *group = group_of(&world, HONEST);
    fate fate = group->epoch == 2 ? INSTALLED : is_accused(&world) ? ACCUSED : IGNORED;
    if (fate == INSTALLED) {
        CHECK_EQ(group->size, 2);
        CHECK(group->reason.lost_rank == 2 && group->world == PEERS);
        lie(&world, CC__EPOCH, epoch, payload, length); /* again: it is known */
        CHECK(group->epoch == 2 && !is_accused(&world));
    }
    run_ms(&world, 1000);
    close_world(&world);
    return fate;
}

static void test_what_becomes_of_a_record(void) {
    for (int sealed = 0; sealed < 2; sealed++) {
        cc__delta delta = truth();
        CHECK_EQ(told(2, &delta, 0, sealed), INSTALLED);
        CHECK_EQ(told(1, &delta, 0, sealed), IGNORED);
        CHECK_EQ(told(0, &delta, 0, sealed), IGNORED);
        CHECK_EQ(told(3, &delta, 0, sealed), IGNORED);
        CHECK_EQ(told(UINT64_MAX, &delta, 0, sealed), IGNORED);
        delta.size = PEERS + 1;
        CHECK_EQ(told(2, &delta, 0, sealed), ACCUSED);
        delta.size = PEERS - 1;
        CHECK_EQ(told(2, &delta, 0, sealed), ACCUSED);
        delta = truth();
        delta.stay[0] = 0x02; /* without the one who is told */
        CHECK_EQ(told(2, &delta, 0, sealed), ACCUSED);
        delta.stay[0] = 0x01; /* without the one who tells */
        CHECK_EQ(told(2, &delta, 0, sealed), ACCUSED);
        delta = truth();
        delta.cause = CC_CAUSE_BOUNDARY;
        CHECK_EQ(told(2, &delta, 0, sealed), ACCUSED);
    }
    passed++;
}

/* A barrier without the others' votes is done at once, so this peer reports done 2, posted 2. */
static void test_outcomes_that_cannot_be(void) {
    static const struct {
        uint32_t n_lanes;
        cc_outcome lane;
        fate fate;
    } CASES[] = {
        {1, {0, 0, 0, 2}, INSTALLED}, {1, {0, 2, 2, 2}, INSTALLED},
        {1, {0, 1, 5, 5}, INSTALLED}, {1, {0, 3, 3, 3}, ACCUSED}, /* it is not done with that */
        {1, {0, 0, 0, 1}, ACCUSED},                               /* it has posted more */
        {0, {0, 0, 0, 0}, ACCUSED},                               /* it has used the lane */
        {1, {1, 0, 0, 0}, ACCUSED},                               /* likewise */
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        cc__delta delta = truth();
        delta.n_lanes = CASES[i].n_lanes;
        delta.lanes[0] = CASES[i].lane;
        CHECK_EQ(told(2, &delta, 2, i % 2), CASES[i].fate);
    }
    cc__delta delta = truth(); /* a lane that it never used */
    delta.n_lanes = 1;
    delta.lanes[0] = (cc_outcome){5, 0, 0, 9};
    CHECK_EQ(told(2, &delta, 0, true), INSTALLED);
    delta.lanes[0] = (cc_outcome){5, 1, 1, 9};
    CHECK_EQ(told(2, &delta, 0, true), ACCUSED);
    passed++;
}

/* ---- reports -------------------------------------------------------------------------------- */

static void test_what_becomes_of_a_report(void) {
    static const struct {
        uint64_t epoch;
        int events;
    } CASES[] = {{1, 1}, {2, 1}, {0, 0}, {3, 0}, {UINT64_MAX, 0}};
    cc_report report = {.cause = CC_CAUSE_LINK, .n_lanes = 1, .n_evidence = 1, .detail = "why"};
    report.lanes[0] = (cc_lane_report){3, 4, 5, 6, 2, {11, 12}};
    report.evidence[0] = (cc_evidence){{{3}}, CC_EVIDENCE_SILENT};
    uint8_t payload[CC__SEALED_BYTES_MAX];
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        world world = open_world(draw());
        cc_report last;
        carried(&world, &last);
        report.evidence[0].kind = CC_EVIDENCE_SILENT;
        uint32_t length = cc__sealed_pack(&report, payload);
        lie(&world, CC__SEALED, CASES[i].epoch, payload, length);
        CHECK_EQ(carried(&world, &last), CASES[i].events);
        lie(&world, CC__SEALED, CASES[i].epoch, payload, length);
        CHECK_EQ(carried(&world, &last), 0); /* nothing is new */
        report.evidence[0].kind = CC_EVIDENCE_REFUSED;
        length = cc__sealed_pack(&report, payload);
        lie(&world, CC__SEALED, CASES[i].epoch, payload, length);
        CHECK_EQ(carried(&world, &last), CASES[i].events);
        if (CASES[i].events) {
            CHECK(last.group == GROUP && last.epoch == CASES[i].epoch);
            CHECK(last.lanes[0].posted == 6 && last.lanes[0].calls[1] == 12);
            CHECK(last.evidence[0].kind == CC_EVIDENCE_REFUSED && last.n_evidence == 1);
            CHECK(strcmp(last.detail, "why") == 0);
        }
        CHECK(group_of(&world, HONEST)->state == CC__GROUP_ACTIVE);
        payload[0] = CC_CAUSE_FORMED;
        lie(&world, CC__SEALED, CASES[i].epoch, payload, length);
        CHECK(is_accused(&world) && carried(&world, &last) == 0);
        close_world(&world);
    }
    passed++;
}

/* ---- chance --------------------------------------------------------------------------------- */

static uint32_t any_payload(uint8_t *out, uint8_t type) {
    uint32_t length;
    if (type == CC__EPOCH) {
        cc__delta delta = truth();
        delta.n_lanes = draw() % 2;
        delta.lanes[0] = (cc_outcome){(uint32_t)(draw() % 3), 0, draw() % 3, 3};
        length = cc__delta_pack(&delta, out);
    } else {
        cc_report report = {.cause = CC_CAUSE_LOST, .n_lanes = 1, .n_evidence = draw() % 2};
        report.lanes[0] = (cc_lane_report){0, 0, draw() % 2, 3, 1, {draw()}};
        report.evidence[0] = (cc_evidence){{{3}}, CC_EVIDENCE_SILENT};
        length = cc__sealed_pack(&report, out);
    }
    for (uint64_t changes = draw() % 4; changes > 0; changes--)
        out[draw() % length] = draw() % 2 ? (uint8_t)draw() : (uint8_t)(draw() % 4);
    uint32_t least = type == CC__EPOCH ? CC__EPOCH_BYTES_MIN : CC__SEALED_BYTES_MIN;
    if (draw() % 4 == 0) length = least + (uint32_t)(draw() % (length - least + 1));
    return length;
}

static void test_random_lies(void) {
    long installed = 0, accused = 0, reports = 0;
    for (int i = 0; i < 400; i++) {
        world world = open_world(draw());
        cc_report last;
        for (int turn = 0; turn < 6; turn++) {
            uint8_t payload[CC__SEALED_BYTES_MAX], type = draw() % 2 ? CC__EPOCH : CC__SEALED;
            uint32_t length = any_payload(payload, type);
            lie(&world, type, draw() % 4, payload, length);
            reports += carried(&world, &last);
        }
        uint64_t epoch = group_of(&world, HONEST)->epoch;
        CHECK(epoch >= 1 && epoch <= 6);
        installed += epoch > 1;
        accused += is_accused(&world);
        run_ms(&world, 300);
        close_world(&world);
    }
    CHECK(installed > 20 && accused > 20 && reports > 20);
    passed++;
}

int main(void) {
    test_what_becomes_of_a_record();
    test_outcomes_that_cannot_be();
    test_what_becomes_of_a_report();
    test_random_lies();
    printf("test_dispatch: %d passed, 0 failed\n", passed);
    return 0;
}
