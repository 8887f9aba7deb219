/* Stands for a program of ours in a shell: has the test start it (shell_programs.py), with the words, environment,
   folder and standard streams of this process, passes signals on to it, and ends as it does.

   The test listens on the socket `socket` beside this file. */

#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define LONGEST (128 * 1024)

extern char **environ;

static char message[LONGEST];
static size_t used;

static void fail(const char *what)
{
    perror(what);
    exit(126);
}

static void add(const char *word)
{
    size_t length = strlen(word) + 1;
    if (used + length > sizeof message) {
        fputs("the words and the environment are too long\n", stderr);
        exit(126);
    }
    memcpy(message + used, word, length);
    used += length;
}

static void add_number(unsigned number)
{
    char text[16];
    snprintf(text, sizeof text, "%u", number);
    add(text);
}

static int connected(char *own)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    *strrchr(own, '/') = 0;
    if (snprintf(address.sun_path, sizeof address.sun_path, "%s/socket", own) >= (int)sizeof address.sun_path) {
        fputs("the path of the socket is too long\n", stderr);
        exit(126);
    }
    int found = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (found < 0 || connect(found, (struct sockaddr *)&address, sizeof address) < 0)
        fail("connect");
    return found;
}

static void ask(int test)
{
    int streams[3] = {0, 1, 2};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof streams)];
    } control = {0};
    struct iovec text = {.iov_base = message, .iov_len = used};
    struct msghdr whole = {
        .msg_iov = &text, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control.space};
    struct cmsghdr *header = CMSG_FIRSTHDR(&whole);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof streams);
    memcpy(CMSG_DATA(header), streams, sizeof streams);
    if (sendmsg(test, &whole, 0) < 0)
        fail("sendmsg");
}

int main(int count, char **words)
{
    char own[4096] = {0};
    if (readlink("/proc/self/exe", own, sizeof own - 1) < 0)
        fail("readlink");
    char *folder = getcwd(NULL, 0);
    if (!folder)
        fail("getcwd");
    mode_t mask = umask(0);
    add(strrchr(own, '/') + 1);
    add(folder);
    add_number(mask);
    add_number((unsigned)count - 1);
    for (int at = 1; at < count; at++)
        add(words[at]);
    for (char **variable = environ; *variable; variable++)
        add(*variable);

    sigset_t passed;
    sigemptyset(&passed);
    int numbers[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    for (size_t at = 0; at < sizeof numbers / sizeof *numbers; at++)
        sigaddset(&passed, numbers[at]);
    sigprocmask(SIG_BLOCK, &passed, NULL);
    int test = connected(own);
    ask(test);
    int32_t program, status;
    if (recv(test, &program, sizeof program, 0) != sizeof program) {
        fputs("the test starts no program\n", stderr);
        return 126;
    }
    int signals = signalfd(-1, &passed, SFD_CLOEXEC);
    struct pollfd waiting[2] = {{.fd = test, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
    while (poll(waiting, 2, -1) >= 0) {
        struct signalfd_siginfo seen;
        if (waiting[0].revents)
            break;
        if (waiting[1].revents && read(signals, &seen, sizeof seen) == sizeof seen)
            kill(program, (int)seen.ssi_signo);
    }
    if (recv(test, &status, sizeof status, 0) != sizeof status) {
        fputs("the test has ended before the program\n", stderr);
        return 126;
    }
    if (status < 0) {
        signal(-status, SIG_DFL);
        raise(-status);
        sigprocmask(SIG_UNBLOCK, &passed, NULL);
    }
    return status;
}
