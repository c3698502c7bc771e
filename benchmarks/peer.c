/* The driver's lines, the buffers and the clock of a rank in C: see peer.h.
 *
 *   start WORD...          connect to the others        {}
 *   case OP in|out BYTES   fill, run once, check        {"us": [t], "bytes": b, "notes": "..."}
 *   run COUNT STEP         COUNT times, a barrier
 *                          before each STEP of them     {"us": [t, ...]}
 *   rest                   give the buffers back        {}
 *   end                                                 (nothing) */
#include "benchmarks/peer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define COMMAND_S 300 /* no command takes longer, also if the driver is gone */
#define WORDS_MAX 80

typedef enum blocks { NONE, ONE, ALL } blocks;
typedef enum side { NEITHER, IN, OUT } side;

/* bench_trial.OPERATIONS */
static const struct {
    const char *name;
    blocks in, out;
    side only_root; /* which of them the root alone has */
    int rooted, reduces;
} about[OPERATIONS] = {
    [ALL_REDUCE] = {"all_reduce", ONE, ONE, NEITHER, 0, 1},
    [BROADCAST] = {"broadcast", ONE, ONE, NEITHER, 1, 0},
    [ALL_GATHER] = {"all_gather", ONE, ALL, NEITHER, 0, 0},
    [BARRIER] = {"barrier", NONE, NONE, NEITHER, 0, 0},
    [REDUCE] = {"reduce", ONE, ONE, OUT, 1, 1},
    [GATHER] = {"gather", ONE, ALL, OUT, 1, 0},
    [SCATTER] = {"scatter", ALL, ONE, IN, 1, 0},
    [REDUCE_SCATTER] = {"reduce_scatter", ALL, ONE, NEITHER, 0, 1},
    [ALL_TO_ALL] = {"all_to_all", ALL, ALL, NEITHER, 0, 0},
    [SEND_RECV] = {"send_recv", ONE, ONE, NEITHER, 0, 0},
};

typedef struct peer {
    const library *library;
    FILE *channel;
    trial trial;
    size_t in, out, largest; /* elements */
} peer;

void peer_fail(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

/* ---- buffers ------------------------------------------------------------------------------ */

/* Blocks in this rank's buffer of that side. */
static size_t blocks_of(operation op, side side, int rank, int ranks) {
    blocks blocks = side == IN ? about[op].in : about[op].out;
    if (about[op].only_root == side && rank != PEER_ROOT) return 0;
    return blocks == NONE ? 0 : blocks == ONE ? 1 : (size_t)ranks;
}

static float *buffer(size_t count) {
    if (count == 0) return NULL;
    float *found = calloc(count, sizeof *found);
    if (!found) peer_fail("the benchmark's buffers", "out of memory");
    return found;
}

static void rest(peer *peer) {
    if (peer->trial.out != peer->trial.in) free(peer->trial.out);
    free(peer->trial.in);
    peer->trial = (trial){0};
}

static float known(int rank, size_t i, int ranks) {
    return (float)((i * 7 + (size_t)rank * 3) % (ranks <= 25 ? 11 : 2));
}

/* Makes `in` this rank's input and `out` something else. */
static void prepare(peer *peer, operation op, int in_place, size_t bytes) {
    int rank = peer->library->rank, ranks = peer->library->ranks;
    size_t most = about[op].in == ALL || about[op].out == ALL ? (size_t)ranks : 1;
    size_t block = bytes / sizeof(float) / most;
    if (op == BARRIER)
        block = 0;
    else if (block == 0)
        block = 1;
    rest(peer);
    peer->largest = block * most;
    peer->in = block * blocks_of(op, IN, rank, ranks);
    peer->out = block * blocks_of(op, OUT, rank, ranks);
    peer->trial = (trial){.op = op, .in_place = in_place, .block = block};
    peer->trial.in = buffer(peer->in);
    peer->trial.out = in_place ? peer->trial.in : buffer(peer->out);
    for (size_t i = 0; i < peer->in; i++) peer->trial.in[i] = known(rank, i, ranks);
}

/* bench_trial.expected: of which block of whose inputs the block `to` of the output is the sum. */
static float right(const peer *peer, size_t to, size_t i) {
    operation op = peer->trial.op;
    int rank = peer->library->rank, ranks = peer->library->ranks;
    size_t at = i + (about[op].in == ALL ? (size_t)rank * peer->trial.block : 0);
    if (about[op].out == ALL) return known((int)to, at, ranks);
    if (!about[op].reduces) return known(about[op].rooted ? PEER_ROOT : 1 - rank, at, ranks);
    float sum = 0;
    for (int source = 0; source < ranks; source++) sum += known(source, at, ranks);
    return sum;
}

static void check(const peer *peer) {
    size_t block = peer->trial.block;
    for (size_t first = 0, to = 0; first < peer->out; first += block, to++) {
        float period[22]; /* the values come again after 11 or 2 elements */
        for (size_t i = 0; i < 22; i++) period[i] = right(peer, to, i);
        for (size_t i = 0; i < block; i++)
            if (peer->trial.out[first + i] != period[i % 22]) {
                fprintf(stderr,
                        "%s of %zu elements gives a wrong result: element %zu is %g, not "
                        "%g\n",
                        about[peer->trial.op].name, peer->largest, first + i,
                        (double)peer->trial.out[first + i], (double)period[i % 22]);
                exit(1);
            }
    }
}

/* ---- time --------------------------------------------------------------------------------- */

static double now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static void repeat(peer *peer, size_t count, size_t step, double *times) {
    const library *library = peer->library;
    for (size_t first = 0; first < count; first += step) {
        library->barrier();
        for (size_t i = first; i < count && i < first + step; i++) {
            double start = now_us();
            library->run(&peer->trial);
            times[i] = now_us() - start;
        }
    }
}

/* ---- commands ----------------------------------------------------------------------------- */

static operation operation_named(const char *name) {
    for (int op = 0; op < OPERATIONS; op++)
        if (strcmp(about[op].name, name) == 0) return (operation)op;
    peer_fail("no such operation", name);
}

static void run_case(peer *peer, char **words) {
    double took;
    prepare(peer, operation_named(words[0]), strcmp(words[1], "in") == 0,
            strtoull(words[2], NULL, 10));
    peer->trial.verifying = 1;
    repeat(peer, 1, 1, &took);
    check(peer);
    peer->trial.verifying = 0;
    if (peer->trial.in_place) /* else the sums would grow without bound */
        memset(peer->trial.in, 0, peer->in * sizeof(float));
    fprintf(peer->channel, "{\"us\": [%.3f], \"bytes\": %zu, \"notes\": \"%s\"}\n", took,
            peer->largest * sizeof(float), peer->trial.notes ? peer->trial.notes : "");
}

static void run_many(peer *peer, char **words) {
    size_t count = strtoull(words[0], NULL, 10), step = strtoull(words[1], NULL, 10);
    double *times = calloc(count, sizeof *times);
    if (!times || step == 0) peer_fail("cannot repeat", words[0]);
    repeat(peer, count, step, times);
    fprintf(peer->channel, "{\"us\": [%.3f", times[0]);
    for (size_t i = 1; i < count; i++) fprintf(peer->channel, ", %.3f", times[i]);
    fprintf(peer->channel, "]}\n");
    free(times);
}

/* Returns 0 at the end. */
static int obey(peer *peer, char **words, int count) {
    if (count == 1 && strcmp(words[0], "end") == 0) return 0;
    if (count >= 1 && strcmp(words[0], "start") == 0) {
        peer->library->start(words + 1, count - 1);
        fprintf(peer->channel, "{}\n");
    } else if (count == 4 && strcmp(words[0], "case") == 0) {
        run_case(peer, words + 1);
    } else if (count == 3 && strcmp(words[0], "run") == 0) {
        run_many(peer, words + 1);
    } else if (count == 1 && strcmp(words[0], "rest") == 0) {
        rest(peer);
        fprintf(peer->channel, "{}\n");
    } else {
        peer_fail("not a command", count ? words[0] : "(an empty line)");
    }
    fflush(peer->channel);
    return 1;
}

static FILE *dial(const char *path) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (strlen(path) >= sizeof to.sun_path) peer_fail(path, "the path is too long for a socket");
    strcpy(to.sun_path, path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) peer_fail(path, strerror(errno));
    FILE *channel = fdopen(fd, "r+");
    if (!channel) peer_fail(path, strerror(errno));
    return channel;
}

void peer_serve(const char *socket_path, const library *library) {
    peer peer = {.library = library, .channel = dial(socket_path)};
    char *line = NULL;
    size_t room = 0;
    fprintf(peer.channel, "{\"rank\": %d, \"address\": \"%s\"}\n", library->rank, library->address);
    fflush(peer.channel);
    for (int more = 1; more;) {
        char *words[WORDS_MAX], *rest_of_line = NULL;
        int count = 0;
        alarm(0);
        if (getline(&line, &room, peer.channel) <= 0)
            peer_fail("the driver is gone", "nothing more to do");
        alarm(COMMAND_S);
        for (char *word = strtok_r(line, " \n", &rest_of_line); word && count < WORDS_MAX;
             word = strtok_r(NULL, " \n", &rest_of_line))
            words[count++] = word;
        more = obey(&peer, words, count);
    }
    rest(&peer);
    free(line);
    fclose(peer.channel);
}
