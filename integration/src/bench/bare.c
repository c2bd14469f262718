/*
 * The floor: what the kernel takes for a container whatever runtime asks for it. One process makes cgroups, clones a
 * child into new namespaces, which mounts docker's file systems, changes its root, drops to a filter and executes
 * /bin/true; the parent reaps it and removes the cgroups, which the child has entered by itself, the cheapest way. No configuration is read, nothing is checked, nothing is kept.
 *
 *   bare ROOTFS [CGROUP...]     each CGROUP a folder to be made, one per hierarchy
 *   bare --twice ROOTFS [...]   the child executes this program once more before it begins, as a runtime's init does
 *   bare --nothing              only starts and ends
 *   bare --prices               nanoseconds of one system call, of one page fault, and of one in a program's file, as three words
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* As many instructions as docker's profile has in ours, all of them reached. */
#define INSTRUCTIONS 300

static void check(long result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "bare: %s: %s\n", what, strerror(errno));
		_exit(1);
	}
}

static void make_mount(const char *type, const char *target, unsigned long flags, const char *data)
{
	mkdir(target, 0755);
	check(mount(type, target, type, flags, data), target);
}

/* v1's `tasks` moves one thread without waiting for all of the machine. v2 has none: there the clone itself enters. */
static int open_tasks(const char *cgroup)
{
	char path[4096];

	snprintf(path, sizeof path, "%s/tasks", cgroup);
	return open(path, O_WRONLY | O_CLOEXEC);
}

static void enter(const char *cgroup)
{
	int file = open_tasks(cgroup);

	if (file < 0)
		return;
	check(write(file, "0", 1), cgroup);
	close(file);
}

static void container(const char *rootfs)
{
	static const char *const masked[] = { "proc/kcore", "proc/keys", "proc/timer_list" };
	static const char *const read_only[] = { "proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger" };
	static struct sock_filter filter[INSTRUCTIONS];
	struct sock_fprog program = { INSTRUCTIONS, filter };
	char *const arguments[] = { "true", NULL };
	size_t i;

	check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
	check(mount(rootfs, rootfs, NULL, MS_BIND | MS_REC, NULL), "bind");
	check(chdir(rootfs), "chdir");
	make_mount("proc", "proc", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL);
	make_mount("tmpfs", "dev", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k");
	make_mount("devpts", "dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5");
	make_mount("tmpfs", "dev/shm", MS_NOSUID | MS_NOEXEC | MS_NODEV, "mode=1777,size=65536k");
	make_mount("mqueue", "dev/mqueue", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL);
	make_mount("sysfs", "sys", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY, NULL);
	for (i = 0; i < 6; i++) {
		char name[] = "dev/node0";
		name[8] += (char)i;
		check(mknod(name, S_IFCHR | 0666, 0x103), name);
	}
	for (i = 0; i < sizeof masked / sizeof *masked; i++)
		if (mount("dev/node0", masked[i], NULL, MS_BIND, NULL) < 0 && errno != ENOENT)
			check(-1, masked[i]);
	for (i = 0; i < sizeof read_only / sizeof *read_only; i++) {
		if (mount(read_only[i], read_only[i], NULL, MS_BIND | MS_REC, NULL) < 0) {
			if (errno == ENOENT)
				continue;
			check(-1, read_only[i]);
		}
		check(mount(NULL, read_only[i], NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL),
		      read_only[i]);
	}
	check(syscall(SYS_pivot_root, ".", "."), "pivot_root");
	check(umount2(".", MNT_DETACH), "detach the old root");
	check(chdir("/"), "chdir");
	check(sethostname("bare", 4), "sethostname");
	check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
	for (i = 0; i + 1 < INSTRUCTIONS; i++)
		filter[i] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0);
	filter[i] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0), "seccomp");
	check(execv("/bin/true", arguments), "execve");
}

static double now(void)
{
	struct timespec time;

	check(clock_gettime(CLOCK_MONOTONIC, &time), "clock_gettime");
	return time.tv_sec * 1e9 + time.tv_nsec;
}

/* The time of touching and giving back memory, per touch. */
static double touched(int file, size_t length, size_t stride)
{
	double begin;
	size_t at;
	volatile char sum = 0;
	char *memory = mmap(NULL, length, file < 0 ? PROT_READ | PROT_WRITE : PROT_READ,
			    MAP_PRIVATE | (file < 0 ? MAP_ANONYMOUS : 0), file, 0);

	check(memory == MAP_FAILED ? -1 : 0, "mmap");
	/* Not on every kernel; the pages are small there then. */
	(void)madvise(memory, length, MADV_NOHUGEPAGE);
	begin = now();
	for (at = 0; at < length; at += stride) {
		if (file < 0)
			memory[at] = 1;
		else
			sum += memory[at];
	}
	munmap(memory, length);
	return (now() - begin) / ((length + stride - 1) / stride);
}

static double least(double one, double other)
{
	return one < other ? one : other;
}

/* The least of several tries: what comes on top is somebody else's. */
static void prices(void)
{
	/* A fault in a file brings up to AROUND pages that are in memory already: "fault around". */
	enum { TRIES = 10, CALLS = 2000, PAGE = 4096, AROUND = 16 };
	double call = 1e18, fault = 1e18, of_file = 1e18;
	int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	struct stat own;
	int try, i;

	check(file, "its own file");
	check(fstat(file, &own), "its own file");
	for (try = 0; try < TRIES; try++) {
		double begin = now();

		for (i = 0; i < CALLS; i++)
			syscall(SYS_getppid);
		call = least(call, (now() - begin) / CALLS);
		fault = least(fault, touched(-1, 500 * PAGE, PAGE));
		of_file = least(of_file, touched(file, (size_t)own.st_size, AROUND * PAGE));
	}
	printf("%.0f %.0f %.0f\n", call, fault, of_file);
}

int main(int count, char **words)
{
	struct clone_args arguments = {
		.flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS,
		.exit_signal = SIGCHLD,
	};
	int status, i, twice;
	long child;

	if (count < 2) {
		fprintf(stderr, "usage: bare [--twice] ROOTFS [CGROUP...] | bare --nothing | bare --prices\n");
		return 2;
	}
	if (strcmp(words[1], "--nothing") == 0)
		return 0;
	if (strcmp(words[1], "--prices") == 0) {
		prices();
		return 0;
	}
	if (strcmp(words[1], "--inside") == 0)
		container(words[2]);
	twice = strcmp(words[1], "--twice") == 0;
	words += twice;
	count -= twice;
	for (i = 2; i < count; i++) {
		check(mkdir(words[i], 0755), words[i]);
		int tasks = open_tasks(words[i]);
		if (tasks >= 0) {
			close(tasks);
			continue;
		}
		arguments.flags |= CLONE_INTO_CGROUP;
		arguments.cgroup = (unsigned long)open(words[i], O_PATH | O_DIRECTORY | O_CLOEXEC);
	}
	child = syscall(SYS_clone3, &arguments, sizeof arguments);
	check(child, "clone3");
	if (child == 0) {
		for (i = 2; i < count; i++)
			enter(words[i]);
		if (twice)
			check(execl("/proc/self/exe", "bare", "--inside", words[1], (char *)NULL), "execve of itself");
		container(words[1]);
	}
	check(waitpid((pid_t)child, &status, 0), "waitpid");
	for (i = 2; i < count; i++)
		check(rmdir(words[i]), words[i]);
	return status != 0;
}
