/* A library to preload: the n-th call that touches a folder fails with EIO, or kills the process.

   Every wrapper asks `faulty` first. The counter is in memory that forked processes share, so a fault can strike any
   process of a run, and strikes once. `fault_arm` starts to count, `fault_disarm` stops and returns the count. A kill
   can be limited to calls that change something: before any other call, it leaves the same as before the next one. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HERE (-100) /* AT_FDCWD; <fcntl.h> would declare `open` differently */

enum { OFF, COUNT, FAIL, KILL, BROKEN };

static struct {
    int mode, changes_only;
    long target, count;
    char folder[PATH_MAX], call[3 * PATH_MAX];
} *shared;

__attribute__((constructor)) static void share(void) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

void fault_arm(const char *folder, int mode, int changes_only, long target) {
    strncpy(shared->folder, folder, PATH_MAX - 1);
    shared->changes_only = changes_only;
    shared->target = target;
    shared->count = 0;
    shared->call[0] = 0;
    shared->mode = mode;
}

long fault_disarm(void) {
    shared->mode = OFF;
    return shared->count;
}

const char *fault_call(void) { return shared->call; }

/* Write the path of an open file, or of a name in an open folder, to `text`. */
static const char *path_of(int handle, const char *name, char *text) {
    char link[32];
    ssize_t length;
    if (name && (name[0] == '/' || handle == HERE)) return name;
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    length = readlink(link, text, PATH_MAX);
    if (length < 0) return "";
    if (name) length += snprintf(text + length, PATH_MAX, "/%s", name);
    text[length] = 0;
    return text;
}

static int faulty(int changes, const char *call, int handle, const char *name) {
    char text[2 * PATH_MAX];
    const char *path;
    long number;
    int before = errno;
    if (!shared || shared->mode == OFF || (shared->changes_only && !changes)) return 0;
    path = path_of(handle, name, text);
    errno = before;
    if (strncmp(path, shared->folder, strlen(shared->folder))) return 0;
    number = __sync_add_and_fetch(&shared->count, 1);
    if (shared->mode == COUNT || number < shared->target) return 0;
    if (number > shared->target && shared->mode != BROKEN) return 0;
    if (number == shared->target) snprintf(shared->call, sizeof shared->call, "%s %s", call, path);
    if (shared->mode == KILL) kill(getpid(), SIGKILL);
    errno = EIO;
    return 1;
}

#define WRAP(type, failed, name, parameters, arguments, condition)                                                     \
    type name parameters {                                                                                             \
        static type(*real) parameters;                                                                                 \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name);                                                 \
        return (condition) ? failed : real arguments;                                                                  \
    }
#define ON_HANDLE(changes, name, parameters, arguments, handle)                                                        \
    WRAP(ssize_t, -1, name, parameters, arguments, faulty(changes, #name, handle, NULL))
#define ON_PATH(changes, name, parameters, arguments, folder, path)                                                    \
    WRAP(int, -1, name, parameters, arguments, faulty(changes, #name, folder, path))
#define WRITES(flags) (((flags) & 3) != 0) /* not O_RDONLY */

ON_PATH(WRITES(flags), open, (const char *path, int flags, int mode), (path, flags, mode), HERE, path)
ON_PATH(WRITES(flags), open64, (const char *path, int flags, int mode), (path, flags, mode), HERE, path)
ON_PATH(WRITES(flags), openat, (int at, const char *path, int flags, int mode), (at, path, flags, mode), at, path)
ON_PATH(WRITES(flags), openat64, (int at, const char *path, int flags, int mode), (at, path, flags, mode), at, path)
ON_PATH(1, mkdir, (const char *path, unsigned mode), (path, mode), HERE, path)
ON_PATH(1, rmdir, (const char *path), (path), HERE, path)
ON_PATH(1, unlink, (const char *path), (path), HERE, path)
ON_PATH(1, unlinkat, (int at, const char *path, int flags), (at, path, flags), at, path)
ON_PATH(1, rename, (const char *from, const char *to), (from, to), HERE, from)
ON_PATH(1, renameat, (int at, const char *from, int below, const char *to), (at, from, below, to), at, from)
ON_PATH(1, renameat2, (int at, const char *from, int below, const char *to, unsigned flags),
        (at, from, below, to, flags), at, from)
ON_PATH(0, stat64, (const char *path, void *found), (path, found), HERE, path)
ON_PATH(0, lstat64, (const char *path, void *found), (path, found), HERE, path)
ON_PATH(0, fstatat64, (int at, const char *path, void *found, int flags), (at, path, found, flags), at, path)
ON_HANDLE(0, read, (int handle, void *data, size_t size), (handle, data, size), handle)
ON_HANDLE(0, pread64, (int handle, void *data, size_t size, long at), (handle, data, size, at), handle)
ON_HANDLE(1, write, (int handle, const void *data, size_t size), (handle, data, size), handle)
ON_HANDLE(1, writev, (int handle, const void *data, int count), (handle, data, count), handle)
ON_HANDLE(1, pwrite64, (int handle, const void *data, size_t size, long at), (handle, data, size, at), handle)
ON_HANDLE(1, pwritev64v2, (int handle, const void *data, int count, long at, int flags),
          (handle, data, count, at, flags), handle)
ON_HANDLE(1, sendfile64, (int to, int from, void *at, size_t size), (to, from, at, size), to)
ON_HANDLE(1, copy_file_range, (int from, long *a, int to, long *b, size_t size, unsigned flags),
          (from, a, to, b, size, flags), to)
WRAP(int, -1, fsync, (int handle), (handle), faulty(1, "fsync", handle, NULL))
WRAP(int, -1, fdatasync, (int handle), (handle), faulty(1, "fdatasync", handle, NULL))
WRAP(int, -1, ftruncate64, (int handle, long size), (handle, size), faulty(1, "ftruncate", handle, NULL))
WRAP(int, -1, flock, (int handle, int operation), (handle, operation), faulty(1, "flock", handle, NULL))
WRAP(void *, NULL, opendir, (const char *path), (path), faulty(0, "opendir", HERE, path))
WRAP(FILE *, NULL, fopen, (const char *path, const char *mode), (path, mode), faulty(1, "fopen", HERE, path))
WRAP(FILE *, NULL, fopen64, (const char *path, const char *mode), (path, mode), faulty(1, "fopen", HERE, path))
