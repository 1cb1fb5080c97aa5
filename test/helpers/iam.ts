// Who may do what under some of Amazon's policies: as much of IAM as lib/model/bucket-policy.ts
// uses, written from its documentation. A denial outranks, and what nobody allows is denied.

import type { Policy, Statement } from '../../lib/model/bucket-policy.ts'

export interface IamRequest {
  /** `s3:PutObject` */
  readonly action: string
  /** `arn:aws:s3:::bucket/key` */
  readonly resource: string
  /** The condition keys that the request has. */
  readonly context?: Readonly<Record<string, string>>
}

export function isAllowed(policies: readonly Policy[], request: IamRequest): boolean {
  const fitting = policies
    .flatMap((policy) => policy.Statement)
    .filter((statement) => fits(statement, request))
  return fitting.some(isAllow) && fitting.every(isAllow)
}

function isAllow({ Effect }: Statement): boolean {
  return Effect === 'Allow'
}

function fits({ Action, Resource, Condition }: Statement, request: IamRequest): boolean {
  const { action, resource, context = {} } = request
  const holds = Object.entries(Condition ?? {}).every(([operator, keys]) => {
    return Object.entries(keys).every(([key, wanted]) => {
      const values = (Array.isArray(wanted) ? wanted : [wanted]).map(String)
      return compare(operator, { value: context[key], values })
    })
  })
  return (
    holds
    && Action.some((pattern) => isLike(action.toLowerCase(), pattern.toLowerCase()))
    && Resource.some((pattern) => isLike(resource, pattern))
  )
}

/** A key that the request does not have fits nothing but Null. */
function compare(
  operator: string,
  { value, values }: { readonly value: string | undefined; readonly values: readonly string[] },
): boolean {
  if (operator === 'Null') return values.includes(String(value === undefined))
  if (value === undefined) return false
  switch (operator) {
    case 'StringEquals':
      return values.includes(value)
    case 'Bool':
      return values.includes(value.toLowerCase())
    case 'StringLike':
    case 'ArnLike':
      return values.some((pattern) => isLike(value, pattern))
    case 'NumericLessThanEquals':
      return values.some((limit) => Number(value) <= Number(limit))
    default:
      throw new Error(`no condition ${operator} here`)
  }
}

/** `*` is any run of characters, slashes too, and `?` any one. */
function isLike(text: string, pattern: string): boolean {
  const escaped = pattern.replace(/[.+^${}()|[\]\\]/g, '\\$&')
  return new RegExp(`^${escaped.replaceAll('*', '.*').replaceAll('?', '.')}$`, 's').test(text)
}
