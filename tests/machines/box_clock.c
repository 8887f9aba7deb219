/* A clock for the processes of one user of a box (clocks.py): the machine's, and so many seconds more as the file of the
 * user's number says, which may change while they run. The box's loader puts this library into each process. Files' times
 * are the kernel's, and so are timers.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const int64_t *more;

__attribute__((constructor)) static void begin(void) {
  char path[64];
  snprintf(path, sizeof path, "/etc/box-clocks/%u", (unsigned)geteuid());
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0)
    return;
  void *mapped = mmap(NULL, sizeof *more, PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (mapped != MAP_FAILED)
    more = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  int failed = (int)syscall(SYS_clock_gettime, clock, now);
  if (!failed && more && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
    now->tv_sec += *more;
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec fine;
  (void)zone;
  if (clock_gettime(CLOCK_REALTIME, &fine))
    return -1;
  *now = (struct timeval){fine.tv_sec, fine.tv_nsec / 1000};
  return 0;
}

time_t time(time_t *out) {
  struct timespec now;
  if (clock_gettime(CLOCK_REALTIME, &now))
    return (time_t)-1;
  if (out)
    *out = now.tv_sec;
  return now.tv_sec;
}
