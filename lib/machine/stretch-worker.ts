// The thread in which stretch.ts runs argon2id.
//
// Gets a passphrase and a salt, answers with the key, and is ended then. Throws what libsodium
// throws, which stretch.ts passes on.

import { parentPort, workerData } from 'node:worker_threads'
import { argon2id } from '../format/sodium.ts'
import type { Stretch } from './stretch.ts'

if (parentPort !== null) parentPort.postMessage(await argon2id(workerData as Stretch))
