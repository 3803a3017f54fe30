"""The provider's errors: the status and the words that a code comes with (Alibaba docs, "Error messages")."""

CATALOGUE = {
    "InvalidParameter": (400, "The request parameters are not valid."),
    "Model.NotExist": (400, "Model not exist."),
    "InvalidParameter.DataInspection": (
        400,
        "Unable to download the media resource during the data inspection process.",
    ),
    "InvalidParameter.FileDownload": (400, "download for input video error"),
    "InvalidFile.DownloadFailed": (400, "The audio file cannot be downloaded."),
    "BadRequest.InputDownloadFailed": (400, "Failed to download the input file."),
    "InvalidURL": (400, "The input link cannot be used."),
    "DataInspectionFailed": (400, "Input data may contain inappropriate content."),
    "InternalError.DataInspection": (400, "Input data may contain inappropriate content."),
    "InternalError.Algo.DataInspectionFailed": (
        400,
        "<400> InternalError.Algo.DataInspectionFailed: Output data may contain inappropriate content.",
    ),
    "IPInfringementSuspect": (400, "Input data is suspected of being involved in IP infringement."),
    "Arrearage": (400, "Access denied, please make sure your account is in good standing."),
    "InvalidApiKey": (401, "Invalid API-key provided."),
    "NOT AUTHORIZED": (401, "Access denied, the workspace is not authorized."),
    "AccessDenied": (403, "Access denied."),
    "AccessDenied.Unpurchased": (
        403,
        "Access to model denied. Please make sure you are eligible for using the model.",
    ),
    "Model.AccessDenied": (403, "Model access denied."),
    "AllocationQuota.FreeTierOnly": (403, "The free tier of the model has been exhausted."),
    "ModelNotFound": (404, "The model does not exist or you do not have access to it."),
    "WorkSpaceNotFound": (404, "WorkSpace can not be found."),
    "Throttling": (429, "Requests throttling triggered."),
    "Throttling.RateQuota": (429, "Requests rate limit exceeded, please try again later."),
    "Throttling.BurstRate": (429, "Request rate increased too quickly. Please slow down."),
    "Throttling.AllocationQuota": (429, "Allocated quota exceeded, please increase your quota limit."),
    # "Budget management" gives the message and no code: this one is the sandbox's.
    "BudgetExhausted": (
        429,
        "The budget configured in Budget Management has been exhausted. You will be unable to make further API calls "
        "until the budget limit is increased or reset.",
    ),
    "PrepaidBillOverdue": (429, "The prepaid bill is overdue."),
    "PostpaidBillOverdue": (429, "The postpaid bill is overdue."),
    "CommodityNotPurchased": (429, "Commodity has not purchased yet."),
    "InternalError": (500, "An internal error has occured, please try again later."),
    "InternalError.Algo": (500, "An internal error has occured during algorithm execution."),
    "InternalError.Timeout": (500, "An internal timeout error has occured during execution."),
    "SystemError": (500, "An system error has occured, please try again later."),
    "RequestTimeOut": (500, "Request timed out, please try again later."),
    "ModelServingError": (
        503,
        "Too many requests. Your requests are being throttled due to system capacity limits.",
    ),
    "ServiceOverloaded": (503, "The service is overloaded, please try again later."),
    "ResourceExhausted": (429, "Resource exhausted, please try again later."),
    "ModelUnavailable": (503, "Model is unavailable, please try again later."),
}
