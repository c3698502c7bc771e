/* A rank of a library that is measured from C: what it is told, and what its library must do.
 *
 * The driver (compare.py) speaks lines to every rank through a Unix socket; peer.c understands them,
 * fills and checks the buffers, and takes the times as collectives/cli/bench_trial.py does for the
 * ranks in Python. Between two commands a rank sleeps in `read`, whatever its library does to wait.
 * A library is three functions; what goes wrong in them ends the process with `peer_fail`. */
#ifndef BENCHMARKS_PEER_H
#define BENCHMARKS_PEER_H

#include <stddef.h>

#define PEER_ROOT 0

typedef enum operation {
    ALL_REDUCE,
    BROADCAST,
    ALL_GATHER,
    BARRIER,
    REDUCE,
    GATHER,
    SCATTER,
    REDUCE_SCATTER,
    ALL_TO_ALL,
    SEND_RECV, /* of two ranks: there and back */
    OPERATIONS,
} operation;

typedef struct trial {
    operation op;
    int in_place;      /* in == out */
    size_t block;      /* elements */
    float *in, *out;   /* NULL where this rank has none */
    int verifying;     /* not timed: the library may look at what it did */
    const char *notes; /* what it then wants to report, a word, or NULL */
} trial;

typedef struct library {
    int rank, ranks;
    const char *address; /* told to the others as words of `start`, in rank order; or "-" */
    void (*start)(char **words, int count);
    void (*barrier)(void);
    void (*run)(trial *trial);
} library;

/* Serves the driver until it says `end`. Returns then; what goes wrong ends the process. */
void peer_serve(const char *socket_path, const library *library);

/* Prints the text and ends the process. */
_Noreturn void peer_fail(const char *what, const char *why);

#endif
