/* A rank of an MPI library, compiled with its own mpicc and started by its own mpirun. What can be in
 * place is in place (MPI_IN_PLACE), everything else is the plain call. */
#include "benchmarks/peer.h"

#include <mpi.h>

#define WORLD MPI_COMM_WORLD

static int rank, ranks;

/* The default error handler of MPI_COMM_WORLD ends all ranks with a message: no status to check. */

static void start(char **words, int count) {
    (void)words;
    if (count) peer_fail("start", "an MPI library finds the others by itself");
}

static void barrier(void) {
    MPI_Barrier(WORLD);
}

static void there_and_back(const trial *t, int count) {
    int other = 1 - rank;
    if (rank == 0) MPI_Send(t->in, count, MPI_FLOAT, other, 0, WORLD);
    MPI_Recv(t->out, count, MPI_FLOAT, other, 0, WORLD, MPI_STATUS_IGNORE);
    if (rank == 1) MPI_Send(t->in, count, MPI_FLOAT, other, 0, WORLD);
}

static void run(trial *t) {
    int n = (int)t->block;
    const void *in = t->in_place ? MPI_IN_PLACE : t->in;
    switch (t->op) {
    case ALL_REDUCE: MPI_Allreduce(in, t->out, n, MPI_FLOAT, MPI_SUM, WORLD); break;
    case BROADCAST: MPI_Bcast(t->in, n, MPI_FLOAT, PEER_ROOT, WORLD); break;
    case ALL_GATHER: MPI_Allgather(t->in, n, MPI_FLOAT, t->out, n, MPI_FLOAT, WORLD); break;
    case BARRIER: MPI_Barrier(WORLD); break;
    case REDUCE:
        if (rank == PEER_ROOT)
            MPI_Reduce(in, t->out, n, MPI_FLOAT, MPI_SUM, PEER_ROOT, WORLD);
        else
            MPI_Reduce(t->in, NULL, n, MPI_FLOAT, MPI_SUM, PEER_ROOT, WORLD);
        break;
    case GATHER: MPI_Gather(t->in, n, MPI_FLOAT, t->out, n, MPI_FLOAT, PEER_ROOT, WORLD); break;
    case SCATTER: MPI_Scatter(t->in, n, MPI_FLOAT, t->out, n, MPI_FLOAT, PEER_ROOT, WORLD); break;
    case REDUCE_SCATTER:
        MPI_Reduce_scatter_block(t->in, t->out, n, MPI_FLOAT, MPI_SUM, WORLD);
        break;
    case ALL_TO_ALL: MPI_Alltoall(t->in, n, MPI_FLOAT, t->out, n, MPI_FLOAT, WORLD); break;
    case SEND_RECV: there_and_back(t, n); break;
    case OPERATIONS: break;
    }
}

int main(int argc, char **argv) {
    if (argc != 2) peer_fail("usage", "mpirun -n RANKS peer_mpi SOCKET");
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(WORLD, &rank);
    MPI_Comm_size(WORLD, &ranks);
    library library = {rank, ranks, "-", start, barrier, run};
    peer_serve(argv[1], &library);
    MPI_Finalize();
    return 0;
}
