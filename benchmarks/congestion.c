/* Preloaded into every process that is measured, it makes each new TCP socket start with the
 * congestion control that COLLECTIVES_BENCH_CONGESTION names, as if that were the system's default:
 * a library that chooses its own still can, and accepted connections inherit it.
 *
 * A network namespace with another default would be the other way. But only the first namespace may
 * make a restricted algorithm (cubic, on many machines) its default, and the machine's own settings
 * are not the benchmark's to change. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

__attribute__((visibility("default"))) int socket(int family, int type, int protocol) {
    int fd = (int)syscall(SYS_socket, family, type, protocol);
    const char *name = getenv("COLLECTIVES_BENCH_CONGESTION");
    int is_tcp = (family == AF_INET || family == AF_INET6) && (type & 0xf) == SOCK_STREAM &&
                 (protocol == 0 || protocol == IPPROTO_TCP);
    if (fd >= 0 && name && is_tcp &&
        setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, (socklen_t)strlen(name))) {
        perror(name);
        abort(); /* else figures would appear under a wrong heading */
    }
    return fd;
}
