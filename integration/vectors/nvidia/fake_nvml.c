/*
 * A driver's NVML for tests, without a GPU. What the node has is said in the variable FAKE_NVML, words in any order:
 *   one, zero    that many GPUs (otherwise two)
 *   mig          GPU 1 is divided into two MIG devices
 *   thor, orin   GPU 0 is one of a system on a chip
 *   initrc=N     nvmlInit_v2 fails with code N
 *   lost         GPU 1 fell off the bus
 *   hang         nvmlInit_v2 never returns
 *   flood        a megabyte on standard error
 *   die          the process dies of SIGABRT
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, LOST = 15 };

struct device {
    const char *uuid, *name, *bus;
    unsigned minor, instance; /* instance: 0 for a whole GPU */
};

static struct device gpus[2] = {
    {"GPU-00000000-1111-2222-3333-444444444444", "NVIDIA H100 80GB HBM3", "00000000:07:00.0", 0, 0},
    {"GPU-11111111-2222-3333-4444-555555555555", "NVIDIA A100-SXM4-40GB", "00000000:0F:00.0", 1, 0},
};
static struct device parts[2] = {
    {"MIG-aaaaaaaa-0000-0000-0000-000000000001", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "", 0, 1},
    {"MIG-aaaaaaaa-0000-0000-0000-000000000002", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "", 0, 2},
};

static int says(const char *word)
{
    const char *words = getenv("FAKE_NVML");
    return words && strstr(words, word);
}

static unsigned count(void)
{
    return says("zero") ? 0 : says("one") ? 1 : 2;
}

int nvmlInit_v2(void)
{
    const char *words = getenv("FAKE_NVML");
    const char *code = words ? strstr(words, "initrc=") : NULL;
    if (says("hang"))
        for (;;)
            pause();
    if (says("die"))
        abort();
    if (says("flood"))
        for (int i = 0; i < 1 << 14; i++)
            fputs("nvml: 64 bytes of noise that nobody should ever have to wait for\n", stderr);
    return code ? atoi(code + 7) : SUCCESS;
}

int nvmlShutdown(void)
{
    return SUCCESS;
}

const char *nvmlErrorString(int code)
{
    switch (code) {
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_FOUND: return "Not Found";
    case 9: return "Driver Not Loaded";
    case LOST: return "GPU is lost";
    case 18: return "Driver/library version mismatch";
    case 999: return "Unknown Error";
    default: return "Other";
    }
}

static int text(char *to, unsigned size, const char *from)
{
    snprintf(to, size, "%s", from);
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *to, unsigned size)
{
    return text(to, size, "550.54.15");
}

int nvmlDeviceGetCount_v2(unsigned *to)
{
    *to = count();
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned at, struct device **to)
{
    if (at >= count())
        return INVALID_ARGUMENT;
    *to = &gpus[at];
    return SUCCESS;
}

int nvmlDeviceGetUUID(struct device *device, char *to, unsigned size)
{
    if (device == &gpus[1] && says("lost"))
        return LOST;
    return text(to, size, device->uuid);
}

int nvmlDeviceGetName(struct device *device, char *to, unsigned size)
{
    if (device == &gpus[0] && says("thor"))
        return text(to, size, "NVIDIA Thor");
    if (device == &gpus[0] && says("orin"))
        return text(to, size, "Orin (nvgpu)");
    return text(to, size, device->name);
}

int nvmlDeviceGetMinorNumber(struct device *device, unsigned *to)
{
    *to = device->minor;
    return device->instance ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetMigMode(struct device *device, unsigned *now, unsigned *next)
{
    *now = *next = device == &gpus[1] && says("mig");
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(struct device *device, unsigned *to)
{
    *to = device == &gpus[1] && says("mig") ? 7 : 0;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(struct device *device, unsigned at, struct device **to)
{
    if (device != &gpus[1] || at >= 2)
        return NOT_FOUND;
    *to = &parts[at];
    return SUCCESS;
}

int nvmlDeviceGetGpuInstanceId(struct device *device, unsigned *to)
{
    *to = device->instance;
    return SUCCESS;
}

int nvmlDeviceGetComputeInstanceId(struct device *device, unsigned *to)
{
    (void)device;
    *to = 0;
    return SUCCESS;
}

struct pci {
    char legacy[16];
    unsigned numbers[5];
    char bus[32];
};

int nvmlDeviceGetPciInfo_v3(struct device *device, struct pci *to)
{
    memset(to, 0, sizeof *to);
    return text(to->bus, sizeof to->bus, device->bus);
}
