// A virtual machine for tests: boots the image of build-image.sh in qemu, runs scripts in it as
// root, plugs USB drives in and pulls them out.
//
// plug-in.ts uses it. Scripts go through a virtio port to guest/agent.sh, drives through qemu's own
// protocol (QMP). The images given are never written to, but those of drives are. qemu dies with
// this process, however that ends. Throws Error with the end of the console when the machine does
// not start, stops answering, or qemu ends.

import { spawn } from 'node:child_process'
import type { ChildProcessWithoutNullStreams } from 'node:child_process'
import { accessSync, constants, existsSync, readFileSync } from 'node:fs'
import { connect } from 'node:net'
import type { Socket } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { tempDirectory } from '../helpers/temp-dir.ts'

export interface Outcome {
  /** The script's own; 124 when its time was up. */
  readonly status: number
  /** Standard output and error as they came, without white space around them. */
  readonly output: string
}

export interface Vm {
  readonly accelerator: Accelerator
  /** From the start of qemu to a system that has started everything. */
  readonly bootSeconds: number
  /** Runs a script of bash as root, which stops at the first failure. */
  readonly run: (script: string, options?: { readonly seconds?: number }) => Promise<Outcome>
  /** Plugs in a USB drive; returns when qemu did, not when the system has seen it. */
  readonly plug: (drive: Drive) => Promise<void>
  /** How much was written to a drive since it was plugged in. */
  readonly writtenBytes: (name: string) => Promise<number>
  /** Pulls a drive out, without a warning to the system. */
  readonly unplug: (name: string) => Promise<void>
  /** Switches the machine off, as if the plug were pulled. */
  readonly stop: () => Promise<void>
}

export interface Drive {
  /** For unplug(). */
  readonly name: string
  /** The file that has its content, partition table first. */
  readonly image: string
  /** How fast it can be written to; without it, as fast as it goes. */
  readonly bytesPerSecond?: number
}

export type Accelerator = 'kvm' | 'tcg'

interface Machine {
  /** base.img, vmlinuz and initrd.img. */
  readonly system: string
  /** A disk image with the label PROJECT. */
  readonly project: string
}

/** With an emulated processor; a loaded machine takes several times the usual half minute. */
const BOOT_SECONDS = 300

/** With KVM it takes five; where /dev/kvm is there and does not work, this much time is lost. */
const KVM_BOOT_SECONDS = 60

/** Of a script that says nothing else. */
const SCRIPT_SECONDS = 60

/** For the answer of qemu itself, and between the end of a script and ours noticing. */
const ANSWER_SECONDS = 20

/** Two processors are what the smallest machines that run this have. */
const HARDWARE = ['-machine', 'q35', '-smp', '2', '-m', '1536', '-nodefaults', '-display', 'none']

/**
 * Boots. With KVM where it works, else with an emulated processor; `$VM_ACCEL` (kvm or tcg)
 * decides.
 * @throws Error when it is not up in time
 */
export async function startVm(machine: Machine): Promise<Vm> {
  const wanted = process.env['VM_ACCEL']
  if (wanted === 'kvm' || wanted === 'tcg') return await boot(machine, wanted, BOOT_SECONDS)
  if (hasKvm()) {
    try {
      return await boot(machine, 'kvm', KVM_BOOT_SECONDS)
    } catch (error) {
      const [line = ''] = String(error).split('\n')
      process.stdout.write(`/dev/kvm is there and does not work (${line}): emulating\n`)
    }
  }
  return await boot(machine, 'tcg', BOOT_SECONDS)
}

function hasKvm(): boolean {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK)
    return true
  } catch {
    return false
  }
}

async function boot(machine: Machine, accelerator: Accelerator, seconds: number): Promise<Vm> {
  const startMs = performance.now()
  const directory = tempDirectory()
  const qemu = startQemu(machine, { accelerator, directory })
  const agent = openAgent(qemu)
  try {
    const control = await openControl(join(directory, 'qmp'), qemu)
    const running = 'systemctl is-system-running --wait || systemctl --failed --no-legend --plain'
    const { output } = await agent(running, seconds)
    if (output !== 'running') throw new Error(`the system is ${output}`)
    const bootSeconds = Math.round((performance.now() - startMs) / 1000)
    const run: Vm['run'] = (script, options) => agent(script, options?.seconds ?? SCRIPT_SECONDS)
    return { accelerator, bootSeconds, run, ...drivesOf(control), stop: () => qemu.kill() }
  } catch (error) {
    await qemu.kill()
    throw error
  }
}

interface Qemu {
  readonly process: ChildProcessWithoutNullStreams
  /** Rejects when it ends; never resolves. */
  readonly ended: Promise<never>
  /** What it and the console said last. */
  readonly lastWords: () => string
  readonly kill: () => Promise<void>
}

function startQemu(
  { system, project }: Machine,
  { accelerator, directory }: { readonly accelerator: Accelerator; readonly directory: string },
): Qemu {
  const consoleFile = join(directory, 'console')
  const disk = (id: string, file: string): string[] => [
    ...['-drive', `if=none,id=${id},format=raw,snapshot=on,file=${file.replaceAll(',', ',,')}`],
    ...['-device', `virtio-blk-pci,drive=${id}`],
  ]
  const processor = accelerator === 'kvm' ? ['host', 'kvm'] : ['max', 'tcg,thread=multi']
  const words = [
    ...HARDWARE,
    ...['-cpu', processor[0] ?? '', '-accel', processor[1] ?? ''],
    ...['-kernel', join(system, 'vmlinuz'), '-initrd', join(system, 'initrd.img')],
    // A panic ends qemu, and so the test.
    ...['-append', 'root=/dev/vda rw console=ttyS0 quiet panic=-1', '-no-reboot'],
    ...['-serial', `file:${consoleFile}`],
    ...disk('root', join(system, 'base.img')),
    ...disk('project', project),
    ...['-device', 'qemu-xhci,id=usb', '-device', 'virtio-rng-pci'],
    ...['-chardev', 'stdio,id=agent,signal=off', '-device', 'virtio-serial-pci'],
    ...['-device', 'virtserialport,chardev=agent,name=agent'],
    ...['-qmp', `unix:${join(directory, 'qmp')},server=on,wait=off`],
  ]
  // Not even a SIGKILL of this process leaves qemu behind. Others use this machine, too.
  const before = ['--pdeathsig', 'KILL', 'nice', 'qemu-system-x86_64']
  const child = spawn('setpriv', [...before, ...words], {
    env: { ...process.env, TMPDIR: directory },
  })
  let errors = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    errors = (errors + text).slice(-4096)
  })
  const lastWords = (): string => {
    const console = existsSync(consoleFile) ? readFileSync(consoleFile, 'utf8') : ''
    return `${errors}${console.split('\n').slice(-25).join('\n')}`
  }
  const ended = new Promise<never>((_resolve, reject) => {
    child.on('error', reject)
    child.on('exit', (status, signal) => {
      reject(new Error(`qemu ended (${status ?? signal}):\n${lastWords()}`))
    })
  })
  ended.catch(() => undefined)
  // A write to a qemu that has just ended; `ended` tells.
  child.stdin.on('error', () => undefined)
  const kill = async (): Promise<void> => {
    child.kill('SIGKILL')
    await ended.catch(() => undefined)
  }
  return { process: child, ended, lastWords, kill }
}

/** What runs a script in the guest, one at a time. */
function openAgent(qemu: Qemu): (script: string, seconds: number) => Promise<Outcome> {
  const { stdin, stdout } = qemu.process
  let received = ''
  let look = (): void => undefined
  stdout.setEncoding('utf8').on('data', (text: string) => {
    received += text
    look()
  })
  let requests = 0
  return async (script, seconds) => {
    const token = `request-${++requests}`
    const end = new RegExp(`\\n<<<${token} exit (\\d+)>>>\\n`)
    const answer = new Promise<Outcome>((resolve) => {
      look = () => {
        const match = end.exec(received)
        if (match === null) return
        resolve({ status: Number(match[1]), output: received.slice(0, match.index).trim() })
        received = received.slice(match.index + match[0].length)
      }
    })
    stdin.write(`${token} ${seconds} ${Buffer.from(script).toString('base64')}\n`)
    return await inTime(Promise.race([answer, qemu.ended]), {
      seconds: seconds + ANSWER_SECONDS,
      late: () => `no answer to: ${script}\n${received}\n${qemu.lastWords()}`,
    })
  }
}

type Values = Readonly<Record<string, unknown>>

interface Control {
  readonly execute: (command: string, values?: Values) => Promise<unknown>
  /** Resolves when qemu says that the device is gone. */
  readonly deleted: (device: string) => Promise<void>
}

async function openControl(path: string, qemu: Qemu): Promise<Control> {
  const socket = await Promise.race([connected(path), qemu.ended])
  const answers = new Map<number, (message: Values) => void>()
  const gone = new Map<string, () => void>()
  const lines = createInterface({ input: socket })
  // The connection ends with qemu, and that tells.
  lines.on('error', () => undefined)
  lines.on('line', (line) => {
    const message = JSON.parse(line) as Values
    if (message['event'] === 'DEVICE_DELETED') {
      gone.get(String((message['data'] as Values)['device']))?.()
    }
    answers.get(Number(message['id']))?.(message)
  })
  let requests = 0
  const wait = async <T>(promise: Promise<T>, what: string): Promise<T> => {
    return await inTime(Promise.race([promise, qemu.ended]), {
      seconds: ANSWER_SECONDS,
      late: () => `qemu does not answer: ${what}`,
    })
  }
  const execute: Control['execute'] = async (command, values = {}) => {
    const id = ++requests
    const answer = new Promise<Values>((resolve) => answers.set(id, resolve))
    socket.write(`${JSON.stringify({ execute: command, arguments: values, id })}\n`)
    const { error, return: result } = await wait(answer, command)
    answers.delete(id)
    if (error === undefined) return result
    throw new Error(`qemu: ${command}: ${String((error as Values)['desc'])}`)
  }
  const deleted: Control['deleted'] = async (device) => {
    await wait(new Promise<void>((resolve) => gone.set(device, resolve)), `unplug ${device}`)
    gone.delete(device)
  }
  await execute('qmp_capabilities')
  return { execute, deleted }
}

/** qemu makes the socket a moment after it was started. */
async function connected(path: string): Promise<Socket> {
  for (let tries = 0; ; tries++) {
    const socket = connect(path)
    try {
      await new Promise((resolve, reject) => socket.once('connect', resolve).once('error', reject))
      return socket
    } catch (error) {
      if (tries === 100) throw error
      await sleep(100)
    }
  }
}

/**
 * Three nodes of qemu's block layer for a drive: the file, `<name>-raw`; a limit of speed,
 * `<name>`; and the USB device, which is called `<name>-usb`.
 */
function drivesOf({ execute, deleted }: Control): Pick<Vm, 'plug' | 'writtenBytes' | 'unplug'> {
  return {
    plug: async ({ name, image, bytesPerSecond = 0 }) => {
      const group = `${name}-limit`
      const limits = { 'bps-write': bytesPerSecond }
      await execute('object-add', { 'qom-type': 'throttle-group', id: group, limits })
      const file = { driver: 'file', filename: image }
      await execute('blockdev-add', { driver: 'raw', 'node-name': `${name}-raw`, file })
      const throttle = { driver: 'throttle', 'throttle-group': group, file: `${name}-raw` }
      await execute('blockdev-add', { ...throttle, 'node-name': name })
      const device = { driver: 'usb-storage', bus: 'usb.0', id: `${name}-usb`, drive: name }
      await execute('device_add', { ...device, serial: name.toUpperCase(), removable: true })
    },
    writtenBytes: async (name) => {
      const devices = (await execute('query-blockstats')) as readonly Values[]
      const device = devices.find(({ qdev }) => String(qdev).includes(`/${name}-usb/`))
      return Number((device?.['stats'] as Values | undefined)?.['wr_bytes'] ?? NaN)
    },
    unplug: async (name) => {
      const gone = deleted(`${name}-usb`)
      await execute('device_del', { id: `${name}-usb` })
      await gone
      await execute('blockdev-del', { 'node-name': name })
      await execute('blockdev-del', { 'node-name': `${name}-raw` })
      await execute('object-del', { id: `${name}-limit` })
    },
  }
}

async function inTime<T>(
  promise: Promise<T>,
  { seconds, late }: { readonly seconds: number; readonly late: () => string },
): Promise<T> {
  const timer = new AbortController()
  const limit = sleep(seconds * 1000, undefined, { signal: timer.signal }).then(
    () => {
      throw new Error(`${late()}\n(waited ${seconds} s)`)
    },
    async () => await new Promise<never>(() => undefined),
  )
  try {
    return await Promise.race([promise, limit])
  } finally {
    timer.abort()
  }
}
