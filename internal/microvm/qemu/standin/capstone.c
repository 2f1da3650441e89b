/*
 * Stands in for libcapstone in the file system that QEMU runs in. QEMU would use that library to print code that it translates (-d in_asm), which
 * nobody asks it for; but the loader writes 1.3 MB of addresses into it, in the memory of each machine. These are the functions that QEMU names; it goes
 * on without when the first one fails.
 */
enum { CS_ERR_ARCH = 2 };

int cs_open(int arch, int mode, void *handle)
{
	(void)arch, (void)mode, (void)handle;
	return CS_ERR_ARCH;
}

int cs_close(void *handle)
{
	(void)handle;
	return CS_ERR_ARCH;
}

int cs_option(unsigned long handle, int type, unsigned long value)
{
	(void)handle, (void)type, (void)value;
	return CS_ERR_ARCH;
}

void *cs_malloc(unsigned long handle)
{
	(void)handle;
	return 0;
}

_Bool cs_disasm_iter(unsigned long handle, const unsigned char **code, unsigned long *size, unsigned long long *address, void *instruction)
{
	(void)handle, (void)code, (void)size, (void)address, (void)instruction;
	return 0;
}
